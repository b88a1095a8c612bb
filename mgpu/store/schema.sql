-- Version 1. One row: the greatest fencing token that was ever reserved.
CREATE TABLE fence (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    high_water INTEGER NOT NULL CHECK (high_water >= 0)
) STRICT;

INSERT INTO fence (id, high_water) VALUES (1, 0);
