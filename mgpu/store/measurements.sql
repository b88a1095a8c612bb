-- Version 2. What was learned of consumers by measuring them. The fingerprint stands for what the
-- consumer is: a row whose fingerprint is another one tells of another consumer of the same name.
CREATE TABLE measurements (
    consumer TEXT NOT NULL,
    gpu TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    footprint_mib INTEGER NOT NULL CHECK (footprint_mib > 0),
    residual_mib INTEGER NOT NULL CHECK (residual_mib >= 0),
    measured_at REAL NOT NULL,
    PRIMARY KEY (consumer, gpu)
) STRICT;
