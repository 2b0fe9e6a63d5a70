//! One module per hook; hook, record, decoder and observation share one name.

pub mod kfree_skb;
