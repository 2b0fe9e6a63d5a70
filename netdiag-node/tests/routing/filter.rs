//! Real packets.
