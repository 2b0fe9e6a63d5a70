//! What the kernel programs write and the agent decodes: fixed-width integers, size asserted, no policy.
//!
//! One module per hook; hook, record, decoder and observation share one name.

pub mod dns;
pub mod event;
pub mod kfree_skb;
pub mod library;
pub mod neighbour;
pub mod reject;
pub mod table;
pub mod tag;
pub mod tcp;
pub mod udp;
