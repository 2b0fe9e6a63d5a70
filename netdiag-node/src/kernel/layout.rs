//! Where this kernel keeps what the programs read, and what its drop reasons are called.

use std::collections::HashMap;
use std::sync::Arc;

use super::LoadError;
use super::btf::{self, Btf};
use super::plan::Plan;
use crate::host::{ReadError, kernel};
use crate::netns::own_cookie;

/// Member and width that the programs load it with. A kernel that differs in width is refused, not misread.
const MEMBERS: [(&str, &str, &str, u32); 13] = [
    ("O_SKB_SK", "sk_buff", "sk", 8),
    ("O_SKB_DEV", "sk_buff", "dev", 8),
    ("O_SKB_DST", "sk_buff", "_skb_refdst", 8),
    ("O_SKB_IIF", "sk_buff", "skb_iif", 4),
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

/// The same of sockets. `sk_protocol` was part of a bit-field before Linux 5.6.
const SOCKET_MEMBERS: [(&str, &str, &str, u32); 13] = [
    ("O_SOCK_NET", "sock_common", "skc_net", 8),
    ("O_SOCK_FAMILY", "sock_common", "skc_family", 2),
    ("O_SOCK_STATE", "sock_common", "skc_state", 1),
    ("O_SOCK_LOCAL_PORT", "sock_common", "skc_num", 2),
    ("O_SOCK_PEER_PORT", "sock_common", "skc_dport", 2),
    ("O_SOCK_LOCAL4", "sock_common", "skc_rcv_saddr", 4),
    ("O_SOCK_PEER4", "sock_common", "skc_daddr", 4),
    ("O_SOCK_LOCAL6", "sock_common", "skc_v6_rcv_saddr", 16),
    ("O_SOCK_PEER6", "sock_common", "skc_v6_daddr", 16),
    ("O_SOCK_PROTOCOL", "sock", "sk_protocol", 2),
    ("O_SOCK_ERROR", "sock", "sk_err", 4),
    ("O_INET_SOURCE_PORT", "inet_sock", "inet_sport", 2),
    ("O_TCP_ROUND_TRIP", "tcp_sock", "srtt_us", 4),
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
    // Before Linux 5.12 the member is there, but filled only when somebody asks; before 5.14 nobody can.
    let cookie = own_cookie().and_then(|_| offset(btf, "net", "net_cookie", 8).ok());
    let number = match cookie {
        Some(cookie) => cookie,
        None => offset(btf, "net", "ns.inum", 4)?,
    };
    plan.set("O_NET_ID", number);
    plan.set("NETNS_IS_COOKIE", u32::from(cookie.is_some()));
    Ok(())
}

/// Offsets of what every program that looks at sockets reads.
pub(super) fn socket(btf: &Btf<'_>, plan: &mut Plan) -> Result<(), LoadError> {
    for (global, structure, member, size) in SOCKET_MEMBERS {
        plan.set(global, offset(btf, structure, member, size)?);
    }
    netns(btf, plan)
}

/// Whether the tracepoint's third argument is the reason.
pub(super) fn kfree_skb(btf: &Btf<'_>, plan: &mut Plan) {
    let arguments = btf.tracepoint_arguments("kfree_skb").unwrap_or_default();
    plan.set("HAS_REASON", u32::from(arguments.get(2) == Some(&"skb_drop_reason")));
}

/// Where the classic tracepoint's event has its fields. Read only for the last way to attach: without tracefs the fields are
/// where they have been since Linux 2.6.31, and the reason stays unknown.
pub(super) fn kfree_skb_event(plan: &mut Plan) {
    let format = kernel::event_format("skb/kfree_skb").unwrap_or_default();
    let field = |name| event_field(&format, name);
    plan.set("O_EVENT_SKB", field("skbaddr").unwrap_or(8));
    plan.set("O_EVENT_LOCATION", field("location").unwrap_or(16));
    plan.set("HAS_EVENT_REASON", u32::from(field("reason").is_some()));
    plan.set("O_EVENT_REASON", field("reason").unwrap_or(0));
}

/// Offset of a field in a tracepoint's `format`: `field:void * skbaddr; offset:8; size:8; signed:0;`.
fn event_field(format: &str, name: &str) -> Option<u32> {
    format.lines().find_map(|line| {
        let (declaration, rest) = line.trim().strip_prefix("field:")?.split_once(';')?;
        if declaration.split_whitespace().last()? != name {
            return None;
        }
        let offset = rest.split(';').find_map(|part| part.trim().strip_prefix("offset:"))?;
        offset.parse().ok()
    })
}

/// The conntrack entry behind a packet. Its types are in the kernel's own BTF, or in the module's; without either, and on
/// kernels without connection tracking, programs look no further than the packet.
pub(super) fn conntrack(btf: &Btf<'_>, plan: &mut Plan) {
    let offsets = conntrack_members(btf).or_else(|_| {
        let read = |bytes: Result<Vec<u8>, ReadError>| bytes.map_err(|error| LoadError::NoBtf(Arc::new(error)));
        let (kernel, module) = (read(kernel::btf())?, read(kernel::module_btf("nf_conntrack"))?);
        let both = btf::joined(&kernel, &module).map_err(LoadError::DamagedBtf)?;
        conntrack_members(&btf::parse(&both).map_err(LoadError::DamagedBtf)?)
    });
    plan.set("HAS_CONNTRACK", u32::from(offsets.is_ok()));
    for (global, offset) in offsets.into_iter().flatten() {
        plan.set(global, offset);
    }
}

/// `nf_conn.tuplehash` holds the tuple of the original direction and that of the reply: DNAT changes where the first goes to
/// the second's source.
fn conntrack_members(btf: &Btf<'_>) -> Result<[(&'static str, u32); 6], LoadError> {
    let nfct = offset(btf, "sk_buff", "_nfct", 8)?;
    let status = offset(btf, "nf_conn", "status", 8)?;
    let tuples =
        btf.member("nf_conn", "tuplehash").ok_or(LoadError::Member { structure: "nf_conn", member: "tuplehash" })?;
    let tuple = offset(btf, "nf_conntrack_tuple_hash", "tuple", 40)?;
    let source = offset(btf, "nf_conntrack_tuple", "src.u3", 16)?;
    let destination = offset(btf, "nf_conntrack_tuple", "dst.u3", 16)?;
    // The ports' union must follow the address's, where programs expect it.
    for (member, start) in [("src.u", source), ("dst.u", destination)] {
        if offset(btf, "nf_conntrack_tuple", member, 2)? != start + 16 {
            return Err(LoadError::Member { structure: "nf_conntrack_tuple", member });
        }
    }
    let protocol = offset(btf, "nf_conntrack_tuple", "dst.protonum", 1)?;
    let reply = tuples.offset + tuples.size / 2;
    Ok([
        ("O_SKB_NFCT", nfct),
        ("O_CT_STATUS", status),
        ("O_CT_BEFORE", tuples.offset + tuple + destination),
        ("O_CT_AFTER", reply + tuple + source),
        ("O_CT_SOURCE", tuples.offset + tuple + source),
        ("O_CT_PROTOCOL", tuples.offset + tuple + protocol),
    ])
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

    /// For a program that gets none, whatever the kernel could pass.
    pub(super) fn unreported(self) -> Self {
        Self { reported: false, ..self }
    }

    /// False on kernels whose tracepoint passes none.
    pub(super) fn are_reported(&self) -> bool {
        self.reported
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

    /// Of Linux 6.18.
    #[test]
    fn an_events_fields_are_found() {
        let format = "name: kfree_skb\nID: 1569\nformat:\n\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
                      \tfield:void * skbaddr;\toffset:8;\tsize:8;\tsigned:0;\n\
                      \tfield:enum skb_drop_reason reason;\toffset:36;\tsize:4;\tsigned:0;\n";
        assert_eq!((event_field(format, "skbaddr"), event_field(format, "reason")), (Some(8), Some(36)));
        assert_eq!((event_field(format, "addr"), event_field("", "reason")), (None, None));
    }

    #[test]
    fn this_kernels_layout_and_names_are_found() {
        let bytes = match kernel::btf() {
            Ok(bytes) => bytes,
            Err(error) => return eprintln!("netdiag-skip: this_kernels_layout_and_names_are_found: {error}"),
        };
        let btf = btf::parse(&bytes).unwrap();
        let mut plan = Plan::default();
        packet(&btf, &mut plan).unwrap();
        assert!(plan.has("O_SKB_DEV", 16_u32));
        assert!(plan.has("NETNS_IS_COOKIE", 1_u32) || plan.has("NETNS_IS_COOKIE", 0_u32));
        let reasons = Reasons::of(&btf, true);
        // Reasons came with Linux 5.17, their subsystems with 6.4.
        let numbers = btf.enumerators("skb_drop_reason");
        if let Some((_, number)) = numbers.iter().find(|(name, _)| name.ends_with("NETFILTER_DROP")) {
            assert_eq!(reasons.name(u32::try_from(*number).unwrap()), "NETFILTER_DROP");
        }
        let has_subsystems = !btf.enumerators("skb_drop_reason_subsys").is_empty();
        assert_eq!(reasons.name(0xfff0), if has_subsystems { "CORE_65520" } else { "REASON_0xfff0" });
        assert_eq!(reasons.name(0x70_0001), "REASON_0x700001");
        assert_eq!(Reasons::default().name(3), "UNREPORTED");
    }
}
