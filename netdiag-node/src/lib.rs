//! The netdiag agent: sees one node and its pods, says what it saw, where, when and how it knows, and never judges.

pub mod host;
