//! Matches and targets of x_tables, which legacy iptables and iptables-nft both use: binary structures, one layout per
//! name and revision (`include/uapi/linux/netfilter/xt_*.h`).

pub(crate) mod bytes;
mod extension;
mod matches;
mod rarer;
mod targets;
pub(crate) mod words;

pub(crate) use matches::parse_match;
pub(crate) use targets::parse_target;
