//! Connections that a rule hands to a flowtable (`nft_flow_offload.c`, Linux 6.18).

use super::{Result, Run, Tracking};
use crate::forwarding::conntrack::{Direction, status};
use crate::forwarding::expression::Verdict;
use crate::forwarding::packet::{GRE, Protocol, TCP, UDP, flag};
use crate::forwarding::path::{Decision, FlowStep};
use crate::forwarding::routing;
use crate::forwarding::state::{ChainKey, Route, RouteQuery};

impl Run<'_> {
    /// `nft_flow_offload_eval`: the packet itself goes on through the rules. Its sender has to be reached by the interface that it
    /// came in on (`nft_flow_route`), which IPv4 takes for granted where no route says so.
    pub(super) fn offload(&mut self, name: &str) -> Result<Verdict> {
        if !self.is_offloaded_now(name) {
            return Ok(Verdict::Break);
        }
        let Some(ChainKey { family, table, .. }) = self.chain.clone() else {
            return Err(self.unknown("a flowtable outside of any chain"));
        };
        let state = self.state;
        let mut of_table = state.flowtables()?.iter().filter(|own| own.family == family && own.table == table);
        let Some(flowtable) = of_table.find(|own| &*own.name == name) else {
            return Err(self.unknown(format!("flowtable {name} is not there")));
        };
        if self.packet.protocol == Protocol::Ipv6 && !self.is_sender_reached()? {
            self.add_gap(format!(
                "whether flowtable {name} takes the connection is not evaluated: its sender is not reached where its packets come in"
            ));
        }
        if let Tracking::Tracked(tracked) = &mut self.tracking {
            tracked.entry.status |= status::OFFLOADED;
        }
        self.decisions.push(Decision::Flowtable {
            hook: self.hook,
            flowtable: flowtable.to_string(),
            devices: flowtable.device_words(),
            step: FlowStep::Added,
        });
        Ok(Verdict::Continue)
    }

    /// By the interface that the packet came in on.
    fn is_sender_reached(&self) -> Result<bool> {
        let (Tracking::Tracked(tracked), Some(input)) = (&self.tracking, self.input) else { return Ok(true) };
        let tuple = match tracked.entry.direction {
            Direction::Original => &tracked.entry.original,
            Direction::Reply => &tracked.entry.reply,
        };
        let query = RouteQuery {
            destination: tuple.source,
            source: Some(tuple.destination),
            input: None,
            output: None,
            mark: self.packet.mark.known().copied().unwrap_or(0),
            service: 0,
            protocol: 0,
            ports: None,
            uid: Some(0),
        };
        let answers = routing::answers(self.state, &query)?;
        let is_here = |route: &Route| matches!(route, Route::Forward { interface, .. } if *interface == input.index);
        Ok(answers.iter().any(|answer| is_here(&answer.route)))
    }

    fn is_offloaded_now(&mut self, name: &str) -> bool {
        const NEVER: u32 = status::HELPER | status::SEQUENCE_ADJUSTED | status::NAT_CLASH | status::OFFLOADED;
        let Some(transport) = self.packet.transport() else { return false };
        // Options of IPv4 (`nft_flow_offload_skip`).
        if self.packet.protocol == Protocol::Ipv4 && transport.offset > 20 {
            return false;
        }
        let (bits, protocol) = match &self.tracking {
            Tracking::Tracked(tracked) => (tracked.entry.status, tracked.entry.original.protocol),
            Tracking::Unknown(why) => {
                let question = format!("flowtable {name} takes the connection, although {why}");
                return self.decide(&question);
            }
            _ => return false,
        };
        if bits & NEVER != 0 || bits & status::CONFIRMED == 0 {
            return false;
        }
        match protocol {
            UDP => true,
            TCP => {
                let Some(flags) = self.packet.bytes.get(transport.offset + 13).copied() else { return false };
                if flags & (flag::FIN | flag::RST) != 0 {
                    return false;
                }
                // A connection is assured by a segment that has an acknowledgement and does not begin it. Linux 5.10 does not wait.
                if flags & flag::SYN != 0 && bits & status::ASSURED == 0 {
                    return self.decide("this kernel takes a TCP connection before it is established, as old ones do");
                }
                // Its state is not kept here (`nf_conntrack_tcp_established`).
                self.decide("the TCP connection of the packet is established")
            }
            // Without translation, and not of version 1, whose keys are its ports.
            GRE => {
                let version = self.packet.bytes.get(transport.offset + 1).map(|byte| byte & 7);
                bits & (status::SOURCE_NAT | status::DESTINATION_NAT) == 0 && version == Some(0)
            }
            _ => false,
        }
    }
}
