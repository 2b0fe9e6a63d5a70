//! Tunnels: in which outer packet a device sends what it is given, and which device takes that packet apart.
//!
//! Decided by what rtnetlink tells of devices, neighbours and forwarding databases. What else decides is not guessed but
//! named ([`Untold`]): programs that say with each packet where it goes, several ends that get copies, tunnels whose
//! parameters rtnetlink does not tell, outer packets that are packed once more, and those that are routed by a mark of the
//! device's own. Not modelled, and not said: VXLAN's extensions (GBP, GPE), on which both ends have to agree, devices that
//! were moved here from another namespace, and devices that take packets for several Ethernet addresses (macvlan) above a
//! tunnel's.

use std::net::IpAddr;

use crate::observation::network::{FdbEntry, Link, Network, Tunnel};

/// Of the entry for what no other entry has (`all_zeros_mac`).
const ALL_OTHERS: &str = "00:00:00:00:00:00";

/// How a packet is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encapsulation {
    Vxlan {
        vni: u32,
        port: u16,
    },
    Geneve {
        vni: u32,
        port: u16,
    },
    /// IPv4 in IPv4.
    Ipip,
}

/// Where a packet goes that leaves by a tunnel's device.
#[derive(Debug, Clone, Copy)]
pub struct Hop<'a> {
    pub gateway: Option<IpAddr>,
    pub destination: IpAddr,
    /// The Ethernet address that the kernel has for the gateway, or for the destination.
    pub mac: Option<&'a str>,
}

/// The outer packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outer {
    pub encapsulation: Encapsulation,
    /// None: the route to the destination decides.
    pub source: Option<IpAddr>,
    pub destination: IpAddr,
    /// The device that it leaves by, where that is fixed.
    pub lower_index: Option<u32>,
    /// Whom the Ethernet frame inside is for; none where no frame is inside.
    pub mac: Option<String>,
}

/// What a device makes of a packet that leaves by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packed {
    Sent(Outer),
    /// It throws it away.
    Dropped {
        why: String,
    },
    Unknown(Untold),
}

/// What has been delivered of an outer packet.
#[derive(Debug, Clone, Copy)]
pub struct Arrived {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Some socket takes it, whoever has that.
    pub has_socket: bool,
}

/// What becomes of an outer packet where it is delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unpacked<'n> {
    /// What is inside comes in by this device.
    By(&'n Link),
    Dropped {
        why: String,
    },
    Unknown(Untold),
}

/// Why something is not known, and what would tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untold {
    pub why: String,
    pub remedy: String,
}

/// As `vxlan_xmit` (drivers/net/vxlan/vxlan_core.c), `geneve_xmit` (drivers/net/geneve.c) and `ip_tunnel_xmit`
/// (net/ipv4/ip_tunnel.c) do it in Linux 6.18.
pub fn packed(network: &Network, link: &Link, hop: Hop<'_>) -> Packed {
    let name = &link.name;
    let Some((tunnel, encapsulation)) = parameters(link) else {
        return match &link.tunnel {
            Some(tunnel) if tunnel.external => unknown(
                format!("a program says with each packet where {name} sends it"),
                "ask the network plugin for its tunnels, as `cilium-dbg bpf tunnel list` and `ovs-ofctl dump-flows` do",
            ),
            Some(tunnel) if tunnel.encapsulated => unknown(
                format!("what {name} packs is packed once more (FOU, GUE, MPLS), which is not evaluated"),
                &format!("look at `ip -d link show {name}` for its `encap`, and at `ip fou show` on both nodes"),
            ),
            _ => unknown(
                format!("to whom {name} sends what it packs is not told for devices of type {}", link.kind),
                "look with `tcpdump` at both nodes whether what one sends comes to the other",
            ),
        };
    };
    if let Some(mark) = tunnel.mark {
        return unknown(
            format!("{name} routes what it sends by a mark of its own, {mark:#x}, which is not evaluated"),
            &format!("ask for that route: `ip route get` with the other end and `mark {mark:#x}`"),
        );
    }
    let sent = |destination: IpAddr, mac: Option<&str>| Outer {
        encapsulation,
        source: tunnel.local,
        destination,
        lower_index: tunnel.lower_index,
        mac: mac.map(str::to_owned),
    };
    match encapsulation {
        Encapsulation::Vxlan { vni, port } => match end(network, link, hop) {
            Ok((entry, destination, mac)) => {
                let (vni, port) = (entry.id.unwrap_or(vni), entry.port.unwrap_or(port));
                Packed::Sent(Outer {
                    encapsulation: Encapsulation::Vxlan { vni, port },
                    ..sent(destination, Some(mac))
                })
            }
            Err(other) => other,
        },
        Encapsulation::Geneve { .. } => match tunnel.remote.filter(|remote| !remote.is_multicast()) {
            Some(remote) => Packed::Sent(sent(remote, hop.mac)),
            None => unknown(
                format!("{name} has no other end that is told"),
                &format!("look at `ip -d link show {name}` for its `remote`"),
            ),
        },
        // Without another end it sends to the next hop itself ("NBMA tunnel").
        Encapsulation::Ipip => Packed::Sent(sent(tunnel.remote.or(hop.gateway).unwrap_or(hop.destination), None)),
    }
}

/// The one entry of the forwarding database that says where a VXLAN device sends to, its tunnel's end, and the Ethernet address
/// that it was looked for with.
fn end<'n, 'h>(network: &'n Network, link: &Link, hop: Hop<'h>) -> Result<(&'n FdbEntry, IpAddr, &'h str), Packed> {
    let name = &link.name;
    let Some(mac) = hop.mac else {
        let next = hop.gateway.unwrap_or(hop.destination);
        return Err(unknown(
            format!("the kernel has no Ethernet address for {next} on {name}, and who will tell it is not known"),
            &format!("look at `ip neigh show dev {name}`, and at the network plugin, which writes these entries"),
        ));
    };
    let entries = |mac: &str| {
        let own = network.forwarding.iter().filter(|entry| entry.link_index == link.index);
        own.filter(|entry| entry.master_index.is_none() && entry.mac == mac).collect::<Vec<_>>()
    };
    let mut found = entries(mac);
    if found.is_empty() {
        found = entries(ALL_OTHERS);
    }
    match found[..] {
        [] if !network.left_out.is_empty() => Err(unknown(
            format!("the forwarding database of {name} was not listed to its end ({})", network.left_out.join(", ")),
            &format!("look at `bridge fdb show dev {name}` for {mac}"),
        )),
        [] => Err(Packed::Dropped {
            why: format!("the forwarding database of {name} has no entry for {mac}, and none for all other addresses"),
        }),
        [entry] => match entry.destination.filter(|destination| !destination.is_multicast()) {
            Some(destination) => Ok((entry, destination, mac)),
            None => Err(unknown(
                format!("{name} sends what is for {mac} to a group or by next hops of their own"),
                &format!("look at `bridge fdb show dev {name}` and `ip nexthop`"),
            )),
        },
        _ => Err(unknown(
            format!("{name} sends copies of what is for {mac} to {} ends", found.len()),
            &format!("look at `bridge fdb show dev {name}` for more than one entry of an address"),
        )),
    }
}

/// As `vxlan_vs_find_vni`, `geneve_lookup` and `ip_tunnel_lookup` find the device (Linux 6.18).
pub fn unpacked<'n>(network: &'n Network, outer: &Outer, arrived: Arrived) -> Unpacked<'n> {
    let found = match outer.encapsulation {
        Encapsulation::Vxlan { vni, port } => by_number(network, "vxlan", (vni, port), arrived),
        Encapsulation::Geneve { vni, port } => by_number(network, "geneve", (vni, port), arrived),
        Encapsulation::Ipip => by_ends(network, arrived),
    };
    let Unpacked::By(link) = found else { return found };
    match (&outer.mac, &link.mac, link.master_index) {
        (.., Some(_)) => untold(
            format!("{} is a port of another device, which may hand on what comes out of it", link.name),
            "ask for the fate of a packet that arrives on that device",
        ),
        // `ip_rcv` drops what is for another host (SKB_DROP_REASON_OTHERHOST).
        (Some(inside), Some(own), None) if inside != own => Unpacked::Dropped {
            why: format!("the frame inside is for {inside}, and {} has the Ethernet address {own}", link.name),
        },
        _ => Unpacked::By(link),
    }
}

fn by_number<'n>(network: &'n Network, kind: &str, (vni, port): (u32, u16), arrived: Arrived) -> Unpacked<'n> {
    let Arrived { source, destination, has_socket } = arrived;
    let of_kind = || network.links.iter().filter(move |link| link.kind == kind);
    let tunnels = of_kind().filter_map(|link| Some((link, link.tunnel.as_ref()?)));
    let listens = |link: &Link, tunnel: &Tunnel| link.up && tunnel.port == Some(port) && speaks(tunnel, destination);
    let listening: Vec<(&'n Link, &Tunnel)> = tunnels.filter(|(link, tunnel)| listens(link, tunnel)).collect();
    // Geneve's devices are found by their other end, too.
    let from = |tunnel: &Tunnel| kind != "geneve" || tunnel.remote == Some(source);
    let takes = |tunnel: &Tunnel| !tunnel.external && tunnel.id == Some(vni) && from(tunnel);
    if let Some(&(link, _)) = listening.iter().find(|(_, tunnel)| takes(tunnel)) {
        return Unpacked::By(link);
    }
    if let Some((link, _)) = listening.iter().find(|(_, tunnel)| tunnel.external) {
        return untold(
            format!("a program says what becomes of what comes out of {}", link.name),
            "ask the network plugin for its tunnels, as `cilium-dbg bpf tunnel list` and `ovs-ofctl dump-flows` do",
        );
    }
    if of_kind().any(|link| link.tunnel.is_none()) || !network.left_out.is_empty() {
        return untold(
            format!("not all parameters of the devices of type {kind} were told"),
            "look at `ip -d link` there for the tunnel's number and port",
        );
    }
    if listening.is_empty() && has_socket {
        return untold(
            format!("no device of type {kind} listens on UDP port {port}, and a socket does"),
            "look at `ss -lunp` for the program that takes the tunnel's packets",
        );
    }
    let others: Vec<String> = listening.iter().map(|(link, tunnel)| other_end(link, tunnel)).collect();
    let why = match others[..] {
        [] => format!("no device of type {kind} that is up listens on UDP port {port}"),
        _ => format!(
            "no device of type {kind} that listens on UDP port {port} takes VNI {vni} from {source} ({})",
            others.join(", ")
        ),
    };
    Unpacked::Dropped { why }
}

/// `flannel.1 has VNI 2`
fn other_end(link: &Link, tunnel: &Tunnel) -> String {
    let vni = tunnel.id.map_or_else(|| "no VNI".to_owned(), |vni| format!("VNI {vni}"));
    match tunnel.remote {
        Some(remote) => format!("{} has {vni} and {remote}", link.name),
        None => format!("{} has {vni}", link.name),
    }
}

/// A device without addresses listens for IPv4 alone (`vxlan_sock_add`, `geneve_open`).
fn speaks(tunnel: &Tunnel, destination: IpAddr) -> bool {
    let is_ipv4 = tunnel.local.or(tunnel.remote).is_none_or(|own| own.is_ipv4());
    tunnel.external || is_ipv4 == destination.is_ipv4()
}

/// Devices that send in UDP take what comes without it all the same: `ipip_rcv` does not ask for that (Linux 6.18).
fn by_ends(network: &Network, arrived: Arrived) -> Unpacked<'_> {
    let Arrived { source, destination, .. } = arrived;
    let is_for = |tunnel: &Tunnel| {
        tunnel.remote.is_none_or(|remote| remote == source) && tunnel.local.is_none_or(|local| local == destination)
    };
    let here = network.links.iter().filter(|link| link.kind == "ipip" && link.up);
    let tunnels = here.filter_map(|link| Some((link, link.tunnel.as_ref()?))).filter(|(_, tunnel)| is_for(tunnel));
    // First by both ends, then by the other one, then by the own one; last those that programs steer, and tunl0.
    let best = tunnels.max_by_key(|(_, tunnel)| (tunnel.remote.is_some(), tunnel.local.is_some(), tunnel.external));
    match best {
        Some((link, tunnel)) if tunnel.external => untold(
            format!("a program says what becomes of what comes out of {}", link.name),
            "ask the network plugin for its tunnels",
        ),
        Some((link, _)) => Unpacked::By(link),
        None if !network.left_out.is_empty() => untold(
            format!("not all devices were told ({})", network.left_out.join(", ")),
            "look at `ip -d link show type ipip` there",
        ),
        None => Unpacked::Dropped {
            why: format!("no device of type ipip that is up takes packets from {source} to {destination}"),
        },
    }
}

/// None where they are not told, each packet brings its own, or they are not all that it is packed by.
fn parameters(link: &Link) -> Option<(&Tunnel, Encapsulation)> {
    let tunnel = link.tunnel.as_ref().filter(|tunnel| !tunnel.external && !tunnel.encapsulated)?;
    let encapsulation = match (link.kind.as_str(), tunnel.id, tunnel.port) {
        ("vxlan", Some(vni), Some(port)) => Encapsulation::Vxlan { vni, port },
        ("geneve", Some(vni), Some(port)) => Encapsulation::Geneve { vni, port },
        ("ipip", ..) => Encapsulation::Ipip,
        _ => return None,
    };
    Some((tunnel, encapsulation))
}

fn unknown(why: String, remedy: &str) -> Packed {
    Packed::Unknown(Untold { why, remedy: remedy.to_owned() })
}

fn untold<'n>(why: String, remedy: &str) -> Unpacked<'n> {
    Unpacked::Unknown(Untold { why, remedy: remedy.to_owned() })
}

impl Encapsulation {
    /// Bytes before the packet inside: headers of IP, UDP (8), VXLAN or Geneve without options (8), Ethernet (14).
    pub fn overhead(self, is_ipv4: bool) -> u32 {
        let ip = if is_ipv4 { 20 } else { 40 };
        match self {
            Self::Vxlan { .. } | Self::Geneve { .. } => ip + 8 + 8 + 14,
            Self::Ipip => ip,
        }
    }

    /// `VXLAN, VNI 1, UDP port 8472`
    pub fn words(self) -> String {
        match self {
            Self::Vxlan { vni, port } => format!("VXLAN, VNI {vni}, UDP port {port}"),
            Self::Geneve { vni, port } => format!("Geneve, VNI {vni}, UDP port {port}"),
            Self::Ipip => "IPIP".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
