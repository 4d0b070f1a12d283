//! Pools made by hand, against a plain model of them.
