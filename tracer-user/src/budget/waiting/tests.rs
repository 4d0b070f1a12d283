//! What waits, against a plain model of it.
