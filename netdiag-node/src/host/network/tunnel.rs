//! Tunnels' parameters, out of `IFLA_LINKINFO`.

use std::net::IpAddr;

use netdiag_common::observation::network::Tunnel;

use super::{address, attributes, int, short};

/// What an attribute below `IFLA_INFO_DATA` says; numbers are those of linux/if_link.h and linux/if_tunnel.h (Linux 6.18).
#[derive(Clone, Copy)]
enum Field {
    Id,
    /// GRE's key, in network order.
    Key,
    Local,
    Remote,
    /// In network order.
    Port,
    Learning,
    External,
    Lower,
    /// `TUNNEL_ENCAP_*`
    Encapsulated,
    Mark,
}

const VXLAN: &[(u16, Field)] = &[
    (1, Field::Id),
    (2, Field::Remote),
    (3, Field::Lower),
    (4, Field::Local),
    (7, Field::Learning),
    (15, Field::Port),
    (16, Field::Remote),
    (17, Field::Local),
    (25, Field::External),
];
const GENEVE: &[(u16, Field)] =
    &[(1, Field::Id), (2, Field::Remote), (5, Field::Port), (6, Field::External), (7, Field::Remote)];
const IPTUN: &[(u16, Field)] = &[
    (1, Field::Lower),
    (2, Field::Local),
    (3, Field::Remote),
    (15, Field::Encapsulated),
    (19, Field::External),
    (20, Field::Mark),
];
const GRE: &[(u16, Field)] = &[
    (1, Field::Lower),
    (5, Field::Key),
    (6, Field::Local),
    (7, Field::Remote),
    (14, Field::Encapsulated),
    (18, Field::External),
    (20, Field::Mark),
];

/// None when a link of this kind is no tunnel, or rtnetlink does not tell its parameters.
pub(super) fn tunnel(kind: &str, link_info: &[u8]) -> Option<Tunnel> {
    let fields = match kind {
        "vxlan" => VXLAN,
        "geneve" => GENEVE,
        "ipip" | "sit" | "ip6tnl" => IPTUN,
        "gre" | "gretap" | "ip6gre" | "ip6gretap" => GRE,
        _ => return None,
    };
    let (_, settings) = attributes(link_info).find(|(found, _)| *found == libc::IFLA_INFO_DATA)?;
    let mut tunnel = Tunnel::default();
    for (number, value) in attributes(settings) {
        let Some((_, field)) = fields.iter().find(|(known, _)| *known == number) else { continue };
        match field {
            Field::Id => tunnel.id = int(value, 0),
            Field::Key => {
                tunnel.id = value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)).filter(|key| *key != 0);
            }
            Field::Local => tunnel.local = specified(value).or(tunnel.local),
            Field::Remote => tunnel.remote = specified(value).or(tunnel.remote),
            Field::Port => tunnel.port = value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes)),
            Field::Learning => tunnel.learning = value.first().map(|on| *on != 0),
            // A byte or a flag without bytes: `IFLA_VXLAN_COLLECT_METADATA` is the first, Geneve's and the others' the second.
            Field::External => tunnel.external = value.first().is_none_or(|on| *on != 0),
            Field::Lower => tunnel.lower_index = int(value, 0).filter(|index| *index != 0),
            Field::Encapsulated => tunnel.encapsulated = short(value, 0).is_some_and(|kind| kind != 0),
            Field::Mark => tunnel.mark = int(value, 0).filter(|mark| *mark != 0),
        }
    }
    if tunnel.external {
        // The kernel writes 0: each packet has its own.
        tunnel.id = tunnel.id.filter(|id| *id != 0);
    }
    Some(tunnel)
}

/// All zeros stand for none.
fn specified(value: &[u8]) -> Option<IpAddr> {
    address(value).filter(|address| !address.is_unspecified())
}
