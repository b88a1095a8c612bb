-- Version 4. What consumers told of their models when they were asked last: a JSON list of names.
-- The fingerprint stands for what the consumer is, as in measurements.
CREATE TABLE models (
    consumer TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    names TEXT NOT NULL,
    told_at REAL NOT NULL
) STRICT;
