//! Matches that ask this host: its sockets and its routes.

use std::net::IpAddr;

use super::{Blob, Matched};
use crate::forwarding::fact::Fact;
use crate::forwarding::fib::kind;
use crate::forwarding::machine::{Result, Run};

impl Run<'_> {
    /// `owner_mt`
    pub(super) fn owner(&self, revision: u32, blob: Blob<'_>) -> Option<Matched> {
        const USER: u8 = 1;
        const GROUP: u8 = 2;
        const SOCKET: u8 = 4;
        const OTHER_GROUPS: u8 = 8;
        let (wanted, inverted) = (blob.byte(16)?, blob.byte(17)?);
        if revision != 1 {
            return None;
        }
        let socket = match &self.packet.socket {
            Fact::Known(Some(socket)) => socket,
            Fact::Known(None) => return Some(Matched::from(wanted == inverted)),
            Fact::Unknown(why) => return Some(Matched::Unknown(format!("match owner, although {why}"))),
        };
        if wanted & inverted & SOCKET != 0 {
            return Some(Matched::No);
        }
        for (flag, at, own) in [(USER, 0, &socket.uid), (GROUP, 8, &socket.gid)] {
            if wanted & flag == 0 {
                continue;
            }
            let (first, last) = (blob.u32(at)?, blob.u32(at + 4)?);
            let own = match own {
                Fact::Known(own) => *own,
                Fact::Unknown(why) => return Some(Matched::Unknown(format!("owner {first}-{last}, although {why}"))),
            };
            let holds = (first..=last).contains(&own);
            if flag == GROUP && !holds && wanted & OTHER_GROUPS != 0 {
                return Some(Matched::Unknown(format!("a further group of the sender is {first}-{last}")));
            }
            if holds == (inverted & flag != 0) {
                return Some(Matched::No);
            }
        }
        Some(Matched::Yes)
    }

    /// `rpfilter_mt` of `ipt_rpfilter.c` and `ip6t_rpfilter.c`: whether the sender is reached where its packet came in.
    pub(super) fn reverse_path(&mut self, blob: Blob<'_>) -> Result<Option<Matched>> {
        const LOOSE: u8 = 1;
        const VALID_MARK: u8 = 2;
        const ACCEPT_LOCAL: u8 = 4;
        const INVERTED: u8 = 8;
        let Some(flags) = blob.byte(0) else { return Ok(None) };
        let from = |holds: bool| Ok(Some(Matched::from(holds != (flags & INVERTED != 0))));
        let Some(input) = self.input else { return from(false) };
        let (source, destination) = (self.packet.source(), self.packet.destination());
        let asks_nobody = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                source.octets()[0] == 0 && (destination.is_broadcast() || destination.octets()[..3] == [224, 0, 0])
            }
            // Neighbour discovery before there is an address.
            _ => source.is_unspecified(),
        };
        if &*input.name == "lo" || asks_nobody {
            return from(true);
        }
        let Some(entry) = self.sender_route(flags & VALID_MARK != 0)? else { return from(false) };
        let kind = u32::from(entry.kind);
        match kind {
            kind::LOCAL if flags & ACCEPT_LOCAL == 0 => from(false),
            // IPv6 does not ask by which interface.
            kind::LOCAL if source.is_ipv6() => from(true),
            kind::LOCAL | kind::UNICAST => from(flags & LOOSE != 0 || entry.interfaces.contains(&input.index)),
            _ => from(false),
        }
    }
}
