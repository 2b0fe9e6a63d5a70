//! One module per hook; hook, record, decoder and observation share one name.

pub mod dns;
pub mod kfree_skb;
