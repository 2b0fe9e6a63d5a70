//! WireGuard's devices and peers, by its generic netlink family (`drivers/net/wireguard/netlink.c`, Linux 5.6).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use jiff::Timestamp;
use netdiag_common::observation::device::{Device, Wireguard, WireguardPeer};
use nix::sys::socket::SockProtocol;

use crate::host::netlink::{IPV4, IPV6, Netlink, attribute, attributes, int, long, short, string};
use crate::host::{ReadError, genetlink};

// Commands and attributes of linux/wireguard.h.
const GET_DEVICE: u8 = 0;
const DEVICE_INDEX: u16 = 1;
const DEVICE_NAME: u16 = 2;
const DEVICE_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_HANDSHAKE: u16 = 6;
const PEER_RECEIVED: u16 = 7;
const PEER_SENT: u16 = 8;
/// Peers told of one device: a mesh of nodes has one each.
const MAX_PEERS: usize = 1_024;

/// Those among `devices`. Without one nothing is asked: most kernels have the family only when a device is there.
pub(super) fn read(devices: &[Device], left_out: &mut Vec<String>) -> Result<Vec<Wireguard>, ReadError> {
    let own: Vec<&Device> = devices.iter().filter(|device| device.kind == "wireguard").collect();
    if own.is_empty() {
        return Ok(Vec::new());
    }
    let mut netlink = Netlink::open(SockProtocol::NetlinkGeneric)?;
    let Some(family) = genetlink::family(&mut netlink, "wireguard")? else {
        left_out.push("peers of WireGuard: this kernel has no netlink family wireguard (before Linux 5.6)".to_owned());
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for device in own {
        let mut request = vec![GET_DEVICE, 1, 0, 0];
        request.extend(attribute(DEVICE_INDEX, &device.index.to_ne_bytes()));
        let step = format!("list WireGuard peers of {}", device.name);
        match netlink.dump(family, &request, &step, parse) {
            Ok(parts) => found.extend(join(parts, left_out)),
            Err(error) => left_out.push(error.to_string()),
        }
    }
    Ok(found)
}

/// A device with many peers comes in several messages.
fn join(parts: Vec<Wireguard>, left_out: &mut Vec<String>) -> Option<Wireguard> {
    let mut parts = parts.into_iter();
    let mut whole = parts.next()?;
    whole.peers.extend(parts.flat_map(|part| part.peers));
    if whole.peers.len() > MAX_PEERS {
        left_out.push(format!(
            "{} of {} WireGuard peers of {}",
            whole.peers.len() - MAX_PEERS,
            whole.peers.len(),
            whole.name
        ));
        whole.peers.truncate(MAX_PEERS);
    }
    Some(whole)
}

/// The message also carries the private key, which is never looked at.
fn parse(payload: &[u8]) -> Option<Wireguard> {
    let mut device = Wireguard { index: 0, name: String::new(), listen_port: 0, peers: Vec::new() };
    for (kind, value) in attributes(payload.get(4..)?) {
        match kind {
            DEVICE_INDEX => device.index = int(value, 0)?,
            DEVICE_NAME => device.name = string(value),
            DEVICE_PORT => device.listen_port = short(value, 0)?,
            DEVICE_PEERS => device.peers = attributes(value).filter_map(|(_, peer)| parse_peer(peer)).collect(),
            _ => {}
        }
    }
    Some(device)
}

/// None for the continuation of a peer whose addresses did not fit, which repeats its key only.
fn parse_peer(nested: &[u8]) -> Option<WireguardPeer> {
    let mut peer = WireguardPeer {
        public_key: String::new(),
        endpoint: None,
        last_handshake: None,
        keepalive_s: 0,
        received_bytes: 0,
        sent_bytes: 0,
    };
    let mut is_whole = false;
    for (kind, value) in attributes(nested) {
        match kind {
            PEER_PUBLIC_KEY => peer.public_key = base64(value),
            PEER_ENDPOINT => peer.endpoint = endpoint(value),
            PEER_KEEPALIVE => peer.keepalive_s = short(value, 0)?,
            PEER_HANDSHAKE => peer.last_handshake = timestamp(value),
            PEER_RECEIVED => {
                peer.received_bytes = long(value, 0)?;
                is_whole = true;
            }
            PEER_SENT => peer.sent_bytes = long(value, 0)?,
            _ => {}
        }
    }
    is_whole.then_some(peer)
}

/// `struct sockaddr_in` or `struct sockaddr_in6`.
fn endpoint(value: &[u8]) -> Option<SocketAddr> {
    let family = u8::try_from(short(value, 0)?).ok()?;
    let port = u16::from_be_bytes(value.get(2..4)?.try_into().ok()?);
    match family {
        IPV4 => Some((Ipv4Addr::from(<[u8; 4]>::try_from(value.get(4..8)?).ok()?), port).into()),
        IPV6 => Some((Ipv6Addr::from(<[u8; 16]>::try_from(value.get(8..24)?).ok()?), port).into()),
        _ => None,
    }
}

/// `struct __kernel_timespec`; zero when it never happened.
fn timestamp(value: &[u8]) -> Option<Timestamp> {
    let seconds = long(value, 0)?.cast_signed();
    if seconds == 0 {
        return None;
    }
    Timestamp::from_second(seconds).ok()
}

/// RFC 4648 §4, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().enumerate().fold(0u32, |bits, (at, byte)| bits | u32::from(*byte) << (16 - 8 * at));
        for position in 0..4 {
            let index = (bits >> (18 - 6 * position) & 0x3f) as usize;
            text.push(if position <= chunk.len() { char::from(ALPHABET[index]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Vec<u8> {
        let mut address = vec![2, 0];
        address.extend(51_820u16.to_be_bytes());
        address.extend([192, 0, 2, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
        let handshake: Vec<u8> = [1_700_000_000u64, 5].into_iter().flat_map(u64::to_ne_bytes).collect();
        [
            attribute(PEER_PUBLIC_KEY, &[0xff; 32]),
            attribute(PEER_ENDPOINT, &address),
            attribute(PEER_KEEPALIVE, &25u16.to_ne_bytes()),
            attribute(PEER_HANDSHAKE, &handshake),
            attribute(PEER_RECEIVED, &100u64.to_ne_bytes()),
            attribute(PEER_SENT, &200u64.to_ne_bytes()),
        ]
        .concat()
    }

    fn message(peers: &[Vec<u8>]) -> Vec<u8> {
        let list: Vec<u8> = peers.iter().flat_map(|peer| attribute(0, peer)).collect();
        let mut bytes = vec![0, 1, 0, 0];
        bytes.extend(attribute(DEVICE_INDEX, &7u32.to_ne_bytes()));
        bytes.extend(attribute(DEVICE_NAME, b"wg0\0"));
        bytes.extend(attribute(DEVICE_PORT, &51_871u16.to_ne_bytes()));
        bytes.extend(attribute(DEVICE_PEERS, &list));
        bytes
    }

    #[test]
    fn peer_is_told_as_wg_prints_it() {
        let continued = attribute(PEER_PUBLIC_KEY, &[0xff; 32]);
        let found = parse(&message(&[peer(), continued])).unwrap();
        assert_eq!((found.index, found.name.as_str(), found.listen_port, found.peers.len()), (7, "wg0", 51_871, 1));
        let peer = &found.peers[0];
        assert_eq!(peer.public_key, "//////////////////////////////////////////8=");
        assert_eq!(peer.endpoint, Some("192.0.2.7:51820".parse().unwrap()));
        assert_eq!(peer.last_handshake.map(Timestamp::as_second), Some(1_700_000_000));
        assert_eq!((peer.keepalive_s, peer.received_bytes, peer.sent_bytes), (25, 100, 200));
    }

    #[test]
    fn texts_of_rfc_4648() {
        for (bytes, text) in [("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn parts_of_one_device_are_joined() {
        let parts = [message(&[peer()]), message(&[peer()])].iter().filter_map(|bytes| parse(bytes)).collect();
        assert_eq!(join(parts, &mut Vec::new()).unwrap().peers.len(), 2);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
