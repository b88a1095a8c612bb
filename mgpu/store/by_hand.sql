-- Version 3. What people have asked for and not taken back. A row of the first while it is paused,
-- in seconds since 1970; a row of the second for who is pinned, or not, against its configuration.
CREATE TABLE pause (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    paused_at REAL NOT NULL
) STRICT;

CREATE TABLE pins (
    consumer TEXT PRIMARY KEY,
    pinned INTEGER NOT NULL CHECK (pinned IN (0, 1))
) STRICT;
