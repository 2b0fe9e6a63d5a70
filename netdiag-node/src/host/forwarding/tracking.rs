//! Whether connections are tracked: the kernel has connection tracking at the hooks of a protocol only while something
//! needs it there, and does not say so. The rules say it: one that looks at connections or translates addresses is enough.

use std::path::Path;

use netdiag_common::forwarding::conntrack::TrackingSettings;
use netdiag_common::forwarding::packet::Protocol;
use netdiag_common::forwarding::state::{Chain, ChainKey};
use netdiag_common::forwarding::{Expression, RuleState};
use nix::sys::socket::SockProtocol;

use super::filters::Filters;
use crate::host::netlink::{IPV4, IPV6, Netlink};
use crate::host::{ReadError, file};

/// `IPCTNL_MSG_CT_GET` of ctnetlink.
const GET_CONNECTIONS: u16 = 0x0101;

const SETTINGS: &str = "/proc/sys/net/netfilter";
const VALUE_BYTES: u64 = 256;

/// Matches and targets of iptables that ask for tracking when they are loaded.
const XT: [&str; 16] = [
    "conntrack",
    "state",
    "connmark",
    "connbytes",
    "connlimit",
    "connlabel",
    "helper",
    "cluster",
    "CONNMARK",
    "CONNSECMARK",
    "SNAT",
    "DNAT",
    "MASQUERADE",
    "REDIRECT",
    "NETMAP",
    "SYNPROXY",
];

/// Looks through the chains that were read, then through base chains, which are read now and kept, then through the others,
/// until a rule needs it.
pub(super) fn is_tracked(protocol: Protocol, state: &mut RuleState, tables: &mut Filters) -> Result<bool, ReadError> {
    if state.chains.0.iter().any(|(key, chain)| chain.as_ref().is_some_and(|chain| asks(key, chain, protocol))) {
        return Ok(true);
    }
    let base: Vec<ChainKey> =
        state.hooks.iter().flat_map(|hooks| hooks.chains.iter().map(|chain| chain.key.clone())).collect();
    for key in &base {
        if !state.chains.0.contains_key(key) {
            let chain = tables.chain(key)?;
            state.chains.0.insert(key.clone(), chain);
        }
        if let Some(Some(chain)) = state.chains.0.get(key)
            && asks(key, chain, protocol)
        {
            return Ok(true);
        }
    }
    if tables.has_legacy_part(protocol, &part_needs) {
        return Ok(true);
    }
    for key in tables.nftables.chain_keys()? {
        if !state.chains.0.contains_key(&key) && tables.chain(&key)?.is_some_and(|chain| asks(&key, &chain, protocol)) {
            return Ok(true);
        }
    }
    // What could not be read may need it as well, and so does IPVS for FTP (`ip_vs_register_conntrack`); then there are
    // connections.
    if state.hooks.as_ref().is_some_and(|hooks| hooks.balanced || !hooks.foreign.is_empty()) {
        has_connections(protocol)
    } else {
        Ok(false)
    }
}

fn asks(key: &ChainKey, chain: &Chain, protocol: Protocol) -> bool {
    key.family.sees(protocol)
        && chain.rules.iter().flat_map(|rule| &rule.expressions).any(|expression| needs(expression, protocol))
}

/// Whether the expression calls `nf_ct_netns_get` when it is loaded (Linux 6.18).
fn needs(expression: &Expression, protocol: Protocol) -> bool {
    match expression {
        Expression::Ct { .. }
        | Expression::CtSet { .. }
        | Expression::Masquerade { .. }
        | Expression::Redirect { .. }
        | Expression::Connlimit { .. }
        | Expression::FlowOffload { .. }
        | Expression::Synproxy => true,
        // For the protocol that is translated only; 1 is both.
        Expression::Nat { family, .. } => *family == 1 || *family == if protocol == Protocol::Ipv4 { 2 } else { 10 },
        // Connection limit, helper, timeout, expectation, synproxy.
        Expression::Object { kind, .. } => matches!(kind, 3 | 5 | 7 | 9 | 10),
        Expression::Dynset { expressions, .. } => expressions.iter().any(|inner| needs(inner, protocol)),
        Expression::XtMatch { name, info, .. } | Expression::XtTarget { name, info, .. } => part_needs(name, info),
        _ => false,
    }
}

fn part_needs(name: &str, info: &[u8]) -> bool {
    match name {
        // Not to be tracked (`XT_CT_NOTRACK`) takes no tracking.
        "CT" => info.first().is_some_and(|flags| flags & 1 == 0),
        name => XT.contains(&name),
    }
}

/// Of the calling thread's namespace, whatever mount it comes from.
pub(super) fn settings() -> Result<TrackingSettings, ReadError> {
    Ok(TrackingSettings {
        tcp_loose: is_on("nf_conntrack_tcp_loose")?,
        tcp_be_liberal: is_on("nf_conntrack_tcp_be_liberal")?,
    })
}

fn is_on(setting: &str) -> Result<Option<bool>, ReadError> {
    let text = file::text_if_there(&Path::new(SETTINGS).join(setting), VALUE_BYTES)?;
    Ok(text.map(|text| text.trim() != "0"))
}

fn has_connections(protocol: Protocol) -> Result<bool, ReadError> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkNetFilter)?;
    let family = if protocol == Protocol::Ipv4 { IPV4 } else { IPV6 };
    let mut found = false;
    netlink.walk(GET_CONNECTIONS, &[family, 0, 0, 0], "look for connections", &mut |_| {
        found = true;
        std::ops::ControlFlow::Break(())
    })?;
    Ok(found)
}
