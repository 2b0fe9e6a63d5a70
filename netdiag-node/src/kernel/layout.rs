//! Where this kernel keeps what the programs read, and what its drop reasons are called.

use std::collections::HashMap;

use super::LoadError;
use super::btf::Btf;
use super::plan::Plan;

/// Member and width that the programs load it with. A kernel that differs in width is refused, not misread.
const MEMBERS: [(&str, &str, &str, u32); 12] = [
    ("O_SKB_SK", "sk_buff", "sk", 8),
    ("O_SKB_DEV", "sk_buff", "dev", 8),
    ("O_SKB_DST", "sk_buff", "_skb_refdst", 8),
    ("O_SKB_LEN", "sk_buff", "len", 4),
    ("O_SKB_PROTOCOL", "sk_buff", "protocol", 2),
    ("O_SKB_NETWORK", "sk_buff", "network_header", 2),
    ("O_SKB_TAIL", "sk_buff", "tail", 4),
    ("O_SKB_HEAD", "sk_buff", "head", 8),
    ("O_DEV_NET", "net_device", "nd_net", 8),
    ("O_DEV_IFINDEX", "net_device", "ifindex", 4),
    ("O_SOCK_NET", "sock_common", "skc_net", 8),
    ("O_DST_DEV", "dst_entry", "dev", 8),
];

/// Offsets of what every program that looks at packets reads.
pub(super) fn packet(btf: &Btf<'_>, plan: &mut Plan) -> Result<(), LoadError> {
    for (global, structure, member, size) in MEMBERS {
        plan.set(global, offset(btf, structure, member, size)?);
    }
    netns(btf, plan)
}

/// How a namespace is numbered. The cookie is never used twice; an inode number is, as soon as its namespace is gone.
pub(super) fn netns(btf: &Btf<'_>, plan: &mut Plan) -> Result<(), LoadError> {
    let cookie = offset(btf, "net", "net_cookie", 8).ok();
    let number = match cookie {
        Some(cookie) => cookie,
        None => offset(btf, "net", "ns.inum", 4)?,
    };
    plan.set("O_NET_ID", number);
    plan.set("NETNS_IS_COOKIE", u32::from(cookie.is_some()));
    Ok(())
}

/// Whether the tracepoint's third argument is the reason.
pub(super) fn kfree_skb(btf: &Btf<'_>, plan: &mut Plan) {
    let arguments = btf.tracepoint_arguments("kfree_skb").unwrap_or_default();
    plan.set("HAS_REASON", u32::from(arguments.get(2) == Some(&"skb_drop_reason")));
}

/// Where a member lies. A member of another width is refused: programs load exactly `size` bytes.
pub(super) fn offset(
    btf: &Btf<'_>,
    structure: &'static str,
    member: &'static str,
    size: u32,
) -> Result<u32, LoadError> {
    match btf.member(structure, member) {
        Some(found) if found.size == size => Ok(found.offset),
        _ => Err(LoadError::Member { structure, member }),
    }
}

/// Names of `enum skb_drop_reason` and of the subsystems that keep reasons of their own.
#[derive(Debug, Default)]
pub(super) struct Reasons {
    names: HashMap<u32, String>,
    subsystems: HashMap<u32, String>,
    reported: bool,
}

impl Reasons {
    pub(super) fn of(btf: &Btf<'_>, reported: bool) -> Self {
        let mut names = HashMap::new();
        // The subsystems' enums are in the kernel's own BTF only when they are built in.
        for reasons in ["skb_drop_reason", "ovs_drop_reason", "mac80211_drop_reason"] {
            for (name, value) in btf.enumerators(reasons) {
                // The mask is negative on kernels where it makes the enum signed, and is no reason anyway.
                if let Ok(value) = u32::try_from(value)
                    && !name.ends_with("_MAX")
                    && !name.ends_with("_MASK")
                {
                    names.entry(value).or_insert_with(|| short(name).to_owned());
                }
            }
        }
        let subsystems = btf
            .enumerators("skb_drop_reason_subsys")
            .into_iter()
            .filter_map(|(name, value)| {
                Some((u32::try_from(value).ok()?, name.trim_start_matches("SKB_DROP_REASON_SUBSYS_").to_owned()))
            })
            .collect();
        Self { names, subsystems, reported }
    }

    /// `NETFILTER_DROP`; a number for what BTF does not name; `UNREPORTED` on kernels that pass no reason.
    pub(super) fn name(&self, reason: u32) -> String {
        if !self.reported {
            return "UNREPORTED".to_owned();
        }
        if let Some(name) = self.names.get(&reason) {
            return name.clone();
        }
        match self.subsystems.get(&(reason >> 16)) {
            Some(subsystem) => format!("{subsystem}_{}", reason & 0xffff),
            None => format!("REASON_{reason:#x}"),
        }
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix("SKB_DROP_REASON_").or_else(|| name.strip_prefix("SKB_")).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf;

    #[test]
    fn this_kernels_layout_and_names_are_found() {
        let bytes = match crate::host::kernel::btf() {
            Ok(bytes) => bytes,
            Err(error) => return eprintln!("netdiag-skip: this_kernels_layout_and_names_are_found: {error}"),
        };
        let btf = btf::parse(&bytes).unwrap();
        let mut plan = Plan::default();
        packet(&btf, &mut plan).unwrap();
        assert!(plan.has("O_SKB_DEV", 16_u32));
        assert!(plan.has("NETNS_IS_COOKIE", 1_u32) || plan.has("NETNS_IS_COOKIE", 0_u32));
        let reasons = Reasons::of(&btf, true);
        let (_, number) =
            *btf.enumerators("skb_drop_reason").iter().find(|(name, _)| name.ends_with("NETFILTER_DROP")).unwrap();
        assert_eq!(reasons.name(u32::try_from(number).unwrap()), "NETFILTER_DROP");
        assert_eq!(reasons.name(0xfff0), "CORE_65520");
        assert_eq!(reasons.name(0x70_0001), "REASON_0x700001");
        assert_eq!(Reasons::default().name(3), "UNREPORTED");
    }
}
