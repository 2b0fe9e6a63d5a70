//! Puts events together by packets, and keeps those of other people's traces out.
//!
//! A packet is ours from the event of our own rule on, by its number. The kernel makes that number of the packet's address
//! in memory and of its flow (`nft_trace_init`, `nft_trace_notify`), so a later packet of the same flow, which somebody else
//! traces, may get it again. Base chains tell it: a packet passes the hooks in their order once, so one that is back at an
//! earlier place is another.

use std::collections::HashMap;

use netdiag_common::forwarding::expression::Verdict;
use netdiag_common::forwarding::state::{BaseChain, ChainKey, ChainKind, Family, Hook};
use netdiag_common::observation::trace::{TraceKind, TracedPacket};

use super::batch::{CHAINS, PRIORITY, TABLE};
use super::event::Traced;

/// Events of one answer. 64 packets through a long ruleset of iptables have a few thousand.
const MAX_EVENTS: usize = 4096;

/// `LOOPBACK_IFINDEX`, in every namespace.
const LOOPBACK: u32 = 1;

/// A place on the way: hook and priority.
type Place = (u8, i32);

pub(super) struct Assembly {
    family: Family,
    base: HashMap<ChainKey, BaseChain>,
    /// Packets that the kernel marks.
    limit: u8,
    marked: u64,
    packets: Vec<TracedPacket>,
    /// By number.
    open: HashMap<u32, Open>,
    kept: usize,
    left_out: u64,
}

/// A packet that is on its way.
struct Open {
    index: usize,
    /// Where it was seen last.
    hook: Hook,
    place: Place,
    chain: String,
}

impl Open {
    /// What a process sends to its own host comes back by loopback, with its number.
    fn returns(&self, hook: Hook, input: Option<u32>) -> bool {
        let was_sent = matches!(self.hook, Hook::Output | Hook::Postrouting);
        was_sent && hook == Hook::Prerouting && input == Some(LOOPBACK)
    }
}

impl Assembly {
    pub(super) fn new(family: Family, base: Vec<BaseChain>, limit: u8) -> Self {
        let base = base.into_iter().map(|chain| (chain.key.clone(), chain)).collect();
        let (packets, open) = (Vec::new(), HashMap::new());
        Self { family, base, limit, marked: 0, packets, open, kept: 0, left_out: 0 }
    }

    /// Whether the kernel marks no further packet.
    pub(super) fn is_full(&self) -> bool {
        self.marked >= u64::from(self.limit)
    }

    /// Packets, and the events that were not kept.
    pub(super) fn finish(self) -> (Vec<TracedPacket>, u64) {
        (self.packets, self.left_out)
    }

    /// None is an event that was not understood.
    pub(super) fn feed(&mut self, traced: Option<Traced>) {
        let Some(Traced { id, mut event }) = traced else {
            self.left_out += 1;
            return;
        };
        if event.family == self.family && event.table == TABLE {
            // The end of our own chains says nothing.
            if event.kind == TraceKind::Rule && event.handle.is_some() {
                self.begin(id, &event.chain, event.input);
            }
            return;
        }
        let Some(open) = self.open.get_mut(&id) else { return };
        let key =
            ChainKey { family: event.family, table: event.table.as_str().into(), chain: event.chain.as_str().into() };
        if let Some(base) = self.base.get(&key) {
            (event.hook, event.priority) = (Some(base.hook), Some(base.priority));
            // The first event of a pass through a base chain has the packet's headers, and is in the base chain itself.
            if event.headers.is_some() {
                let place = place(base);
                let is_behind = place > open.place || place == open.place && open.chain != event.chain;
                if !is_behind && !open.returns(base.hook, event.input) {
                    self.open.remove(&id);
                    return;
                }
                (open.hook, open.place, open.chain) = (base.hook, place, event.chain.clone());
            }
        }
        let index = open.index;
        if matches!(event.verdict, Verdict::Drop | Verdict::Stolen) {
            self.open.remove(&id);
        }
        if self.kept >= MAX_EVENTS {
            self.left_out += 1;
            return;
        }
        self.kept += 1;
        self.packets[index].events.push(event);
    }

    /// Our own rule has marked a packet.
    fn begin(&mut self, id: u32, chain: &str, input: Option<u32>) {
        let Some(chain) = CHAINS.iter().find(|own| own.name == chain) else { return };
        self.marked += 1;
        let hook = if chain.receives { Hook::Prerouting } else { Hook::Output };
        let place = (order(hook), PRIORITY);
        if let Some(open) = self.open.get_mut(&id).filter(|open| open.returns(hook, input)) {
            (open.hook, open.place) = (hook, place);
            return;
        }
        let index = self.packets.len();
        self.packets.push(TracedPacket { id, direction: chain.direction, events: Vec::new() });
        self.open.insert(id, Open { index, hook, place, chain: String::new() });
    }
}

/// Chains that translate are called at the places of translation, whatever their own priority (`nf_nat_ipv4_ops`).
fn place(base: &BaseChain) -> Place {
    let priority = match (base.kind, base.hook) {
        (ChainKind::Nat, Hook::Prerouting | Hook::Output) => -100,
        (ChainKind::Nat, _) => 100,
        _ => base.priority,
    };
    (order(base.hook), priority)
}

fn order(hook: Hook) -> u8 {
    match hook {
        Hook::Ingress => 0,
        Hook::Prerouting | Hook::Output => 1,
        Hook::Input | Hook::Forward => 2,
        Hook::Postrouting => 3,
        Hook::Egress => 4,
    }
}

#[cfg(test)]
mod tests {
    use netdiag_common::forwarding::conntrack::Tuple;
    use netdiag_common::observation::trace::TraceEvent;

    use super::*;

    fn base(name: &str, hook: Hook, priority: i32) -> BaseChain {
        let key = ChainKey { family: Family::Ip, table: "t".into(), chain: name.into() };
        BaseChain { key, kind: ChainKind::Filter, hook, priority, policy: Verdict::Accept, made: (1, 1) }
    }

    fn traced(id: u32, table: &str, chain: &str, input: Option<u32>) -> Option<Traced> {
        let any = "10.0.0.1".parse().unwrap();
        let headers = Tuple { source: any, destination: any, protocol: 17, source_port: 1, destination_port: 2 };
        let event = TraceEvent {
            family: Family::Ip,
            table: table.to_owned(),
            chain: chain.to_owned(),
            kind: TraceKind::Rule,
            hook: None,
            priority: None,
            handle: Some(2),
            verdict: Verdict::Continue,
            mark: 0,
            input,
            output: None,
            headers: Some(headers),
            connection: None,
        };
        Some(Traced { id, event })
    }

    fn assembly() -> Assembly {
        let chains = vec![
            base("raw", Hook::Prerouting, -300),
            base("out", Hook::Output, 0),
            base("in", Hook::Input, 0),
            base("post", Hook::Postrouting, 0),
        ];
        Assembly::new(Family::Ip, chains, 2)
    }

    fn chains(packet: &TracedPacket) -> Vec<&str> {
        packet.events.iter().map(|event| &*event.chain).collect()
    }

    #[test]
    fn only_packets_that_our_rule_marked_are_ours() {
        let mut assembly = assembly();
        assembly.feed(traced(8, "t", "raw", Some(3)));
        assembly.feed(traced(7, TABLE, "original-in", Some(3)));
        assembly.feed(traced(7, "t", "raw", Some(3)));
        assembly.feed(traced(8, "t", "in", Some(3)));
        assembly.feed(traced(7, "t", "in", Some(3)));
        let (packets, left_out) = assembly.finish();
        assert_eq!((packets.len(), chains(&packets[0]), left_out), (1, vec!["raw", "in"], 0));
        assert_eq!((packets[0].events[0].hook, packets[0].events[0].priority), (Some(Hook::Prerouting), Some(-300)));
    }

    #[test]
    fn a_number_that_comes_again_is_another_packet() {
        let mut assembly = assembly();
        assembly.feed(traced(7, TABLE, "original-in", Some(3)));
        assembly.feed(traced(7, "t", "raw", Some(3)));
        assembly.feed(traced(7, "t", "in", Some(3)));
        // Somebody else traces the next one, which our limit left out.
        assembly.feed(traced(7, "t", "raw", Some(3)));
        assembly.feed(traced(7, "t", "in", Some(3)));
        assert_eq!(chains(&assembly.finish().0[0]), ["raw", "in"]);
    }

    #[test]
    fn what_comes_back_by_loopback_is_the_same_packet() {
        let mut assembly = assembly();
        assembly.feed(traced(7, TABLE, "original-out", None));
        assembly.feed(traced(7, "t", "out", None));
        assembly.feed(traced(7, "t", "post", None));
        assembly.feed(traced(7, TABLE, "original-in", Some(LOOPBACK)));
        assembly.feed(traced(7, "t", "raw", Some(LOOPBACK)));
        assembly.feed(traced(7, "t", "in", Some(LOOPBACK)));
        assert!(assembly.is_full());
        let (packets, _) = assembly.finish();
        assert_eq!(packets.len(), 1);
        assert_eq!(chains(&packets[0]), ["out", "post", "raw", "in"]);
    }

    #[test]
    fn what_comes_back_by_loopback_with_another_tuple_is_the_same_packet() {
        let mut assembly = assembly();
        assembly.feed(traced(7, TABLE, "original-out", None));
        assembly.feed(traced(7, "t", "out", None));
        assembly.feed(traced(7, "t", "raw", Some(LOOPBACK)));
        assembly.feed(traced(7, "t", "in", Some(LOOPBACK)));
        // Now it has arrived: this is another one.
        assembly.feed(traced(7, "t", "raw", Some(LOOPBACK)));
        let (packets, _) = assembly.finish();
        assert_eq!(chains(&packets[0]), ["out", "raw", "in"]);
    }

    #[test]
    fn events_beyond_the_limit_are_counted() {
        let mut assembly = assembly();
        assembly.feed(traced(7, TABLE, "original-in", Some(3)));
        for _ in 0..MAX_EVENTS + 3 {
            assembly.feed(traced(7, "t", "jumped to", None));
        }
        assembly.feed(None);
        let (packets, left_out) = assembly.finish();
        assert_eq!((packets[0].events.len(), left_out), (MAX_EVENTS, 4));
    }
}
