//! The virtual server of IPVS that a packet is for, and its real servers.

use netdiag_common::forwarding::Packet;
use netdiag_common::forwarding::packet::{TCP, UDP};

use super::Found;
use crate::host::ReadError;
use crate::host::ipvs::{Key, Real, Tables, Virtual};

/// Real servers that are named one by one.
const MAX_NAMED: usize = 16;

/// None when the packet's destination is no virtual server.
pub(super) fn server(packet: &Packet) -> Result<Option<Found>, ReadError> {
    let protocol = packet.transport().map_or(0, |transport| transport.protocol);
    let (TCP | UDP, (_, Some(port))) = (protocol, packet.known_ports()) else { return Ok(None) };
    let Some(mut tables) = Tables::open()? else { return Ok(None) };
    let Some(server) = tables.server(Key { address: packet.destination(), protocol, port })? else { return Ok(None) };
    let reals = tables.reals(server.key)?;
    Ok(Some(found(&server, &reals)))
}

fn found(server: &Virtual, reals: &[Real]) -> Found {
    let Key { address, protocol, port } = server.key;
    let protocol = if protocol == TCP { "tcp" } else { "udp" };
    let mut named: Vec<String> = reals.iter().take(MAX_NAMED).map(words).collect();
    if reals.len() > MAX_NAMED {
        named.push(format!("and {} more", reals.len() - MAX_NAMED));
    }
    let real = if named.is_empty() { "without real servers".to_owned() } else { named.join(", ") };
    let virtual_server = std::net::SocketAddr::new(address, port);
    Found {
        what: format!("IPVS virtual server {protocol} {virtual_server} (scheduler {}: {real})", server.scheduler),
        why: "IPVS is not evaluated: it sends the packet to one of its real servers, or refuses it without any"
            .to_owned(),
        remedy: "ask for the fate of a packet to a real server; `ipvsadm -Lnc` shows which one a connection has"
            .to_owned(),
    }
}

fn words(real: &Real) -> String {
    let method = match real.method & 7 {
        0 => "masquerading",
        1 => "local",
        2 => "tunnel",
        3 => "direct routing",
        _ => "bypass",
    };
    format!("{} by {method} with weight {}", real.address, real.weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_servers_are_told_with_their_weights() {
        let key = Key { address: "10.96.0.1".parse().unwrap(), protocol: TCP, port: 443 };
        let server = Virtual { key, scheduler: "rr".to_owned(), is_persistent: false };
        let real = |address: &str, weight| Real { address: address.parse().unwrap(), method: 0, weight };
        assert_eq!(
            found(&server, &[real("10.0.0.1:6443", 1), real("10.0.0.2:6443", 0)]).what,
            "IPVS virtual server tcp 10.96.0.1:443 (scheduler rr: 10.0.0.1:6443 by masquerading with weight 1, 10.0.0.2:6443 by \
             masquerading with weight 0)"
        );
        assert!(found(&server, &[]).what.ends_with("without real servers)"));
    }
}
