//! Whether this host has a socket for the packet (`xt_socket.c`, Linux 6.18).

use super::{Blob, Matched};
use crate::forwarding::fact::Fact;
use crate::forwarding::machine::{PacketSocket, Result, Run, has_socket};
use crate::forwarding::socket::SocketState;

const TRANSPARENT: u8 = 1;
const NO_WILDCARD: u8 = 2;
const RESTORE_MARK: u8 = 4;

impl Run<'_> {
    /// `socket_mt4_v0`, `socket_mt4_v1_v2_v3`, `socket_mt6_v1_v2_v3`
    pub(super) fn socket_match(&mut self, revision: u32, blob: Blob<'_>) -> Result<Option<Matched>> {
        let flags = match (revision, blob.byte(0)) {
            (0, _) => 0,
            (1..=3, Some(flags)) => flags,
            _ => return Ok(None),
        };
        let found = match self.packet_socket()? {
            PacketSocket::Found(found) => found,
            PacketSocket::Nothing => return Ok(Some(Matched::No)),
            PacketSocket::Unknown(why) if !self.decide(&has_socket(&why)) => return Ok(Some(Matched::No)),
            PacketSocket::Given(why) | PacketSocket::Unknown(why) => {
                let wanted = words(flags);
                if !self.decide(&format!("the packet's socket is as a rule asks ({wanted}), although {why}")) {
                    return Ok(Some(Matched::No));
                }
                if flags & RESTORE_MARK != 0 {
                    self.packet.mark = Fact::Unknown(format!("it has the mark of its socket, and {why}"));
                }
                return Ok(Some(Matched::Yes));
            }
        };
        let is_whole = found.state == SocketState::Whole;
        if flags & NO_WILDCARD == 0 && is_whole && found.is_wildcard() {
            return Ok(Some(Matched::No));
        }
        if flags & TRANSPARENT != 0 {
            let is_transparent = match &found.transparent {
                Fact::Known(holds) => *holds,
                Fact::Unknown(why) => {
                    self.decide(&format!("the socket on {} is transparent, although {why}", found.address))
                }
            };
            if !is_transparent {
                return Ok(Some(Matched::No));
            }
        }
        if flags & RESTORE_MARK != 0 && is_whole {
            self.packet.mark = found.mark;
        }
        Ok(Some(Matched::Yes))
    }
}

/// `--transparent --nowildcard`
fn words(flags: u8) -> &'static str {
    match (flags & TRANSPARENT != 0, flags & NO_WILDCARD != 0) {
        (true, true) => "transparent",
        (true, false) => "transparent, bound to an address",
        (false, true) => "any",
        (false, false) => "bound to an address",
    }
}
