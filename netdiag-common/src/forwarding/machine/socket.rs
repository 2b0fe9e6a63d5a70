//! The socket of a packet: the one that it would be delivered to, or that a transparent proxy's rule gave it.

use std::net::{IpAddr, SocketAddr};

use super::{Result, Run, Tracking};
use crate::forwarding::conntrack::{Direction, State, status};
use crate::forwarding::expression::Verdict;
use crate::forwarding::fact::Fact;
use crate::forwarding::packet::{ICMP, ICMPV6, Protocol, TCP, Transport, UDP, flag};
use crate::forwarding::path::Decision;
use crate::forwarding::socket::{FoundSocket, SocketQuery, SocketState};
use crate::forwarding::state::Hook;

/// What a lookup comes to.
#[derive(Debug, Clone)]
pub(in crate::forwarding) enum PacketSocket {
    Found(FoundSocket),
    /// A proxy's, of which no more is known.
    Given(String),
    Nothing,
    /// Whether there is one is not known.
    Unknown(String),
}

/// The latter since "netfilter: socket: Lookup orig tuple for IPv6 SNAT" (Linux 6.15), which some older kernels may have.
const ANSWER_OF_IPV6: &str = "many kernels before Linux 6.15 look for the socket of an answer over IPv6 by the \
                              translated address that it comes to, and later ones by the original address";

/// `enum nft_socket_keys`
mod key {
    pub const TRANSPARENT: u32 = 0;
    pub const MARK: u32 = 1;
    pub const WILDCARD: u32 = 2;
    pub const CONTROL_GROUP: u32 = 3;
}

impl Run<'_> {
    /// `nft_socket_eval`
    pub(super) fn load_socket(&mut self, key: u32, to: u32) -> Result<Verdict> {
        let found = match self.packet_socket()? {
            PacketSocket::Found(found) => found,
            PacketSocket::Nothing => return Ok(Verdict::Break),
            PacketSocket::Unknown(why) if !self.decide(&has_socket(&why)) => return Ok(Verdict::Break),
            PacketSocket::Given(why) | PacketSocket::Unknown(why) => {
                let bytes = if key == key::CONTROL_GROUP { 8 } else { 4 };
                self.store_unknown(to, bytes, &format!("{} of the packet's socket, because {why}", words(key)));
                return Ok(Verdict::Continue);
            }
        };
        let is_whole = found.state == SocketState::Whole;
        Ok(match key {
            key::TRANSPARENT => {
                let is_transparent = found.transparent.map(|holds| [u8::from(holds)]);
                self.store_fact(to, is_transparent)
            }
            key::MARK if is_whole => self.store_fact(to, found.mark.map(u32::to_ne_bytes)),
            key::WILDCARD if is_whole => self.store_fact(to, Fact::Known([u8::from(found.is_wildcard())])),
            key::CONTROL_GROUP if is_whole => {
                self.store_unknown(to, 8, "the control group of the packet's socket, which is not read");
                Verdict::Continue
            }
            _ => Verdict::Break,
        })
    }

    /// `skb->sk`, or what `nf_sk_lookup_slow_v4` and `nf_sk_lookup_slow_v6` find: for an answer to a translated source, by
    /// the original one. Early demultiplexing before the hook input finds the same.
    pub(in crate::forwarding) fn packet_socket(&self) -> Result<PacketSocket> {
        if let Some(given) = &self.given_socket {
            return Ok(given.clone());
        }
        if self.hook == Hook::Output {
            return Ok(match &self.packet.socket {
                Fact::Known(None) => PacketSocket::Nothing,
                Fact::Known(Some(_)) => PacketSocket::Given("the socket that sends it is not looked up".into()),
                Fact::Unknown(why) => PacketSocket::Unknown(why.clone()),
            });
        }
        let (Some(input), Some(transport)) = (self.input, self.packet.transport()) else {
            return Ok(PacketSocket::Nothing);
        };
        if self.is_icmp_error(transport) {
            return Ok(PacketSocket::Unknown("what an ICMP error quotes is not looked up".into()));
        }
        let Some((source, mut destination)) = self.ends(transport) else { return Ok(PacketSocket::Nothing) };
        match &self.tracking {
            Tracking::Unknown(why) => return Ok(PacketSocket::Unknown(why.clone())),
            Tracking::Tracked(tracked)
                if tracked.state == State::Established
                    && tracked.entry.direction == Direction::Reply
                    && tracked.entry.status & status::SOURCE_NAT_DONE != 0 =>
            {
                let original = &tracked.entry.original;
                let original = SocketAddr::new(original.source, original.source_port);
                if self.packet.protocol == Protocol::Ipv6 && destination != Some(original) {
                    return Ok(PacketSocket::Unknown(ANSWER_OF_IPV6.into()));
                }
                destination = Some(original);
            }
            _ => {}
        }
        let (Some(source), Some(destination)) = (source, destination) else {
            return Ok(PacketSocket::Unknown("one of its ports is not known".into()));
        };
        self.look_up(&SocketQuery { protocol: transport.protocol, source, destination, interface: input.index })
    }

    /// `icmp_is_err`; of ICMPv6 all types below 128.
    fn is_icmp_error(&self, transport: Transport) -> bool {
        match (transport.protocol, self.packet.bytes.get(transport.offset)) {
            (ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
            (ICMPV6, Some(kind)) => *kind < 128,
            _ => false,
        }
    }

    /// Of TCP and UDP, each if its port is known; none for all else.
    fn ends(&self, transport: Transport) -> Option<(Option<SocketAddr>, Option<SocketAddr>)> {
        if !matches!(transport.protocol, TCP | UDP) {
            return None;
        }
        self.packet.ports()?;
        let (source, destination) = self.packet.known_ports();
        Some((
            source.map(|port| SocketAddr::new(self.packet.source(), port)),
            destination.map(|port| SocketAddr::new(self.packet.destination(), port)),
        ))
    }

    fn look_up(&self, query: &SocketQuery) -> Result<PacketSocket> {
        Ok(match self.state.sockets(query)? {
            Fact::Known(found) => FoundSocket::any_of(found).map_or(PacketSocket::Nothing, PacketSocket::Found),
            Fact::Unknown(why) => PacketSocket::Unknown(why.clone()),
        })
    }

    /// `nft_tproxy_eval`: a rule without a socket to give the packet to does not match.
    pub(super) fn proxy(&mut self, family: u8, address: Option<u32>, port: Option<u32>) -> Result<Verdict> {
        // `NFPROTO_IPV4`, `NFPROTO_IPV6`; 0 is both.
        let own = if self.packet.protocol == Protocol::Ipv4 { 2 } else { 10 };
        if family != 0 && family != own {
            return Ok(Verdict::Break);
        }
        let address = match address.map(|from| self.load_address(from)) {
            None => None,
            Some(Fact::Known(address)) => Some(address),
            Some(Fact::Unknown(why)) => return Ok(self.proxy_unless(&why)),
        };
        let port = match port.map(|from| self.load_port(from)) {
            None => None,
            Some(Fact::Known(port)) => Some(port),
            Some(Fact::Unknown(why)) => return Ok(self.proxy_unless(&why)),
        };
        let is_given = self.give_to_proxy(address, port)?;
        Ok(if is_given { Verdict::Continue } else { Verdict::Break })
    }

    fn proxy_unless(&mut self, why: &str) -> Verdict {
        if self.assume_proxy(why) { Verdict::Continue } else { Verdict::Break }
    }

    fn load_address(&self, from: u32) -> Fact<IpAddr> {
        let bytes = if self.packet.protocol == Protocol::Ipv4 { 4 } else { 16 };
        match self.registers.load(from, bytes).known() {
            Ok(value) => match (<[u8; 4]>::try_from(value), <[u8; 16]>::try_from(value)) {
                (Ok(value), _) => Fact::Known(value.into()),
                (_, Ok(value)) => Fact::Known(value.into()),
                _ => Fact::Unknown("the register does not exist".into()),
            },
            Err(reason) => Fact::Unknown(self.words(reason).to_string()),
        }
    }

    /// Whether the packet gets a transparent proxy's socket: that of its own connection, or the one that listens at an
    /// address and port, which are the interface's first and the packet's where a rule names none
    /// (`nft_tproxy_eval_v4`, `tproxy_tg4`).
    pub(in crate::forwarding) fn give_to_proxy(&mut self, address: Option<IpAddr>, port: Option<u16>) -> Result<bool> {
        let (Some(input), Some(transport)) = (self.input, self.packet.transport()) else { return Ok(false) };
        let Some(ends) = self.ends(transport) else { return Ok(false) };
        let (Some(source), Some(destination)) = ends else {
            return Ok(self.assume_proxy("one of its ports is not known"));
        };
        let protocol = transport.protocol;
        let own = SocketQuery { protocol, source, destination, interface: input.index };
        let connected = match self.look_up(&own)? {
            PacketSocket::Unknown(why) => return Ok(self.assume_proxy(&why)),
            PacketSocket::Found(found) if found.remote.is_some() && !(protocol == UDP && found.is_wildcard()) => {
                Some(found)
            }
            _ => None,
        };
        let is_settled = |found: &FoundSocket| found.state != SocketState::Closed || !self.begins(transport);
        let (at, found) = match connected {
            Some(found) if is_settled(&found) => (destination, found),
            before => {
                let address = address.filter(|address| !address.is_unspecified());
                let address = address.or_else(|| self.first_address()).unwrap_or(destination.ip());
                let at = SocketAddr::new(address, port.filter(|port| *port != 0).unwrap_or(destination.port()));
                match (self.look_up(&SocketQuery { destination: at, ..own })?, before) {
                    (PacketSocket::Unknown(why), _) => return Ok(self.assume_proxy(&why)),
                    (PacketSocket::Found(found), _) if found.remote.is_none() => (at, found),
                    // The lookup for netdiag finds connections first, that of the kernel only who listens.
                    (PacketSocket::Found(_), _) if protocol == TCP => {
                        return Ok(self.assume_proxy(&format!("who listens at {at} is hidden by a connection there")));
                    }
                    (_, Some(before)) => (destination, before),
                    (_, None) => return Ok(false),
                }
            }
        };
        let is_transparent = match &found.transparent {
            Fact::Known(holds) => *holds,
            Fact::Unknown(why) => {
                let question = format!("the socket on {} is transparent, although {why}", found.address);
                self.decide(&question)
            }
        };
        if is_transparent {
            self.decisions.push(Decision::Proxied { hook: self.hook, to: at });
            self.give(PacketSocket::Found(found));
        }
        Ok(is_transparent)
    }

    /// A proxy's socket may take it: asked for each rule anew, since each names another.
    pub(in crate::forwarding) fn assume_proxy(&mut self, why: &str) -> bool {
        let takes = self.decide_afresh(&format!("a transparent proxy's socket takes the packet, although {why}"));
        if takes {
            self.give(PacketSocket::Given(why.to_owned()));
        }
        takes
    }

    /// `nf_tproxy_assign_sock`
    fn give(&mut self, socket: PacketSocket) {
        self.packet.socket = Fact::Unknown("it has a transparent proxy's socket, whose user was not read".into());
        self.given_socket = Some(socket);
    }

    /// SYN alone (`nf_tproxy_handle_time_wait4`).
    fn begins(&self, transport: Transport) -> bool {
        let flags = self.packet.bytes.get(transport.offset + 13).copied().unwrap_or(0);
        flags & (flag::FIN | flag::SYN | flag::RST | flag::ACK) == flag::SYN
    }

    /// `nf_tproxy_laddr4`, `nf_tproxy_laddr6`
    fn first_address(&self) -> Option<IpAddr> {
        /// `IFA_F_SECONDARY`; `IFA_F_DEPRECATED` and `IFA_F_TENTATIVE`.
        const PASSED_OVER: [u32; 2] = [0x01, 0x20 | 0x40];
        let ipv4 = self.packet.protocol == Protocol::Ipv4;
        let passed_over = PASSED_OVER[usize::from(!ipv4)];
        let mut own = self.input?.addresses.iter().filter(|own| own.address.is_ipv4() == ipv4);
        own.find(|own| own.flags & passed_over == 0).map(|own| own.address)
    }
}

/// The question that is asked where a lookup says nothing.
pub(in crate::forwarding) fn has_socket(why: &str) -> String {
    format!("a socket of this host is there for the packet, although {why}")
}

fn words(key: u32) -> String {
    match key {
        key::TRANSPARENT => "whether it is transparent".into(),
        key::MARK => "the mark".into(),
        key::WILDCARD => "whether it is bound to an address".into(),
        key::CONTROL_GROUP => "the control group".into(),
        key => format!("key {key}"),
    }
}
