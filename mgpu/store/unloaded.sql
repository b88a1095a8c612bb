-- Version 5. Services that cannot be asked what they hold and were asked to unload last, each with the
-- run of it that was asked: another run was asked for nothing.
CREATE TABLE unloaded (
    service TEXT PRIMARY KEY,
    run TEXT NOT NULL
) STRICT;
