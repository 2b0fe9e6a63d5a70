//! Sockets of this host, as netfilter looks them up for a packet (`nf_socket_ipv4.c`, `nf_tproxy_ipv4.c` and their
//! counterparts for IPv6, Linux 6.18).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::fact::Fact;

/// A packet's ends, or those that a proxy gives it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SocketQuery {
    /// IANA number: of TCP or of UDP.
    pub protocol: u8,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// The interface that the packet came in on.
    pub interface: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundSocket {
    pub address: SocketAddr,
    /// Its other end; none for one that takes packets from anybody.
    pub remote: Option<SocketAddr>,
    pub state: SocketState,
    /// `IP_TRANSPARENT`
    pub transparent: Fact<bool>,
    /// `SO_MARK`
    pub mark: Fact<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketState {
    /// `sk_fullsock`
    Whole,
    /// Of a connection that is being opened, and has no socket of its own yet (`TCP_NEW_SYN_RECV`).
    Opening,
    /// Of a connection that was closed here (`TCP_TIME_WAIT`).
    Closed,
}

impl FoundSocket {
    /// What holds for each of several that share an address (`SO_REUSEPORT`), of which the kernel takes one.
    pub(super) fn any_of(sockets: &[Self]) -> Option<Self> {
        let (first, others) = sockets.split_first()?;
        let mut any = first.clone();
        let why = || format!("the sockets that share {} are not alike", first.address);
        for other in others {
            if other.transparent != first.transparent {
                any.transparent = Fact::Unknown(why());
            }
            if other.mark != first.mark {
                any.mark = Fact::Unknown(why());
            }
        }
        Some(any)
    }

    /// It is bound to no address (`inet_rcv_saddr`, `sk_v6_rcv_saddr`).
    pub(super) fn is_wildcard(&self) -> bool {
        match self.address.ip() {
            IpAddr::V4(address) => address.is_unspecified(),
            IpAddr::V6(address) => address.is_unspecified() || address.to_ipv4_mapped() == Some(Ipv4Addr::UNSPECIFIED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_sockets_that_is_known_in_which_they_are_alike() {
        let one = FoundSocket {
            address: "[::]:80".parse().unwrap(),
            remote: None,
            state: SocketState::Whole,
            transparent: Fact::Known(true),
            mark: Fact::Known(1),
        };
        let other = FoundSocket { mark: Fact::Known(2), ..one.clone() };
        let any = FoundSocket::any_of(&[one.clone(), other]).unwrap();
        assert_eq!((any.transparent.known(), any.mark.known()), (Some(&true), None));
        assert!(any.is_wildcard());
        assert_eq!(FoundSocket::any_of(&[]), None);
    }
}
