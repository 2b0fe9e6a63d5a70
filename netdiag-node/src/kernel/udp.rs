//! Full UDP sockets, from the hook `udp_fail_queue_rcv_skb`.

use std::cmp::Reverse;

use jiff::Timestamp;
use netdiag_common::Window;
use netdiag_common::observation::Owner;
use netdiag_common::observation::preflight::Check;
use netdiag_common::observation::udp::{Udp, UdpAccounts, UdpGroup};

use super::btf::Btf;
use super::event::{EventSize, Events, Hook, Names, Planned, names};
use super::object::{Object, Way};
use super::plan::Plan;
use super::{LoadError, layout};
use crate::metrics::{Export, Families, catalogue};

/// Groups in one observation: some 50 KiB of JSON.
const ANSWER_GROUPS: usize = 300;

pub(super) static NAMES: Names = names!("UDP");

pub(super) static HOOKS: [Hook; 1] = [Hook {
    tracepoint: "udp_fail_queue_rcv_skb",
    ways: ways!("udp_fail_queue_rcv_skb", "netdiag_udp_full", "netdiag_udp_full_raw"),
    lost: "datagrams that found their socket full, by port",
}];

/// The running program and what it counted.
pub struct KernelUdp {
    events: Events,
}

impl KernelUdp {
    pub(super) fn plan(btf: &Btf<'_>, size: EventSize, plan: &mut Plan) -> Result<Planned, LoadError> {
        layout::socket(btf, plan)?;
        Ok(Events::plan(btf, &NAMES, &HOOKS, size, plan))
    }

    pub(super) fn attach(object: &Object, planned: Planned) -> Result<Self, LoadError> {
        Ok(Self { events: Events::attach(object, planned)? })
    }

    pub fn checks(&self) -> Vec<Check> {
        self.events.checks()
    }

    /// Takes what the kernel counted since the last harvest. Blocks for 10 to 20 ms.
    pub fn harvest(&mut self, now: Timestamp) {
        self.events.harvest(now);
    }

    /// What was harvested in the window. `resolve` says whose namespace a number is.
    pub fn observe(&self, now: Timestamp, window: Window, resolve: &dyn Fn(u64) -> Owner) -> Udp {
        let view = self.events.view(now, window, resolve);
        let accounts = UdpAccounts {
            total: view.sum.total,
            attributed: view.sum.attributed,
            coarse: view.sum.coarse,
            foreign_netns: view.foreign,
            total_only: view.sum.total_only,
            missed: view.missed,
            forgotten: view.forgotten,
        };
        let mut groups: Vec<UdpGroup> = view
            .keys
            .into_iter()
            .map(|(netns, key, count)| UdpGroup {
                netns,
                port: key.ends.map(|ends| ends.port),
                errno: key.detail.cast_signed(),
                packets: count.packets,
                first_at: view.clock.at(count.first_ns),
                last_at: view.clock.at(count.last_ns),
            })
            .collect();
        groups.sort_by(|a, b| {
            (Reverse(a.packets), &a.netns, a.port, a.errno).cmp(&(Reverse(b.packets), &b.netns, b.port, b.errno))
        });
        let omitted_groups = groups.len().saturating_sub(ANSWER_GROUPS) as u64;
        groups.truncate(ANSWER_GROUPS);
        let unseen = self.events.unseen();
        Udp { since: view.since, window_s: view.window_s, accounts, groups, omitted_groups, unseen }
    }
}

impl Export for KernelUdp {
    fn export(&self, into: &mut Families) {
        let all = self.events.since_start();
        let sum = &all.sum;
        into.add(&catalogue::UDP_FULL, &[], sum.total);
        for (level, packets) in [("attributed", sum.attributed), ("coarse", sum.coarse), ("total_only", sum.total_only)]
        {
            into.add(&catalogue::UDP_FULL_ACCOUNTED, &[level], packets);
        }
        for (cause, events) in [("program_busy", all.missed), ("group_forgotten", all.forgotten)] {
            into.add(&catalogue::LOST_EVENTS, &["udp", cause], events);
        }
    }
}
