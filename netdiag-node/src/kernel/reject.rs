//! Refusals, from the hooks `icmp_send`, `tcp_send_reset`, `tcp_receive_reset` and `inet_sk_error_report`.

use std::cmp::Reverse;
use std::collections::HashMap;

use jiff::Timestamp;
use netdiag_common::observation::kfree_skb::DropTuple;
use netdiag_common::observation::preflight::Check;
use netdiag_common::observation::reject::{RejectAccounts, RejectGroup, RejectKind, Rejects};
use netdiag_common::observation::{Owner, Protocol};
use netdiag_common::record::kfree_skb::FLAG_DESTINATION;
use netdiag_common::record::reject as record;
use netdiag_common::{Gap, GapReason, Window};

use super::btf::Btf;
use super::event::{EventSize, Events, Hook, Key, Names, Planned, names};
use super::object::{Object, Way};
use super::plan::Plan;
use super::{LoadError, layout};
use crate::metrics::{Export, Families, catalogue};

/// Groups in one observation: some 100 KiB of JSON.
const ANSWER_GROUPS: usize = 300;

pub(super) static NAMES: Names = names!("REJECT");

pub(super) static HOOKS: [Hook; 4] = [
    Hook {
        tracepoint: "tcp_send_reset",
        ways: ways!("tcp_send_reset", "netdiag_tcp_reset", "netdiag_tcp_reset_raw"),
        lost: "TCP resets sent, with what they answer and why",
    },
    Hook {
        tracepoint: "tcp_receive_reset",
        ways: ways!("tcp_receive_reset", "netdiag_tcp_got_reset", "netdiag_tcp_got_reset_raw"),
        lost: "TCP resets received, with the connection they end",
    },
    Hook {
        tracepoint: "icmp_send",
        ways: ways!("icmp_send", "netdiag_icmp_send", "netdiag_icmp_send_raw"),
        lost: "ICMP errors sent, with what they answer: whether a dropped packet was rejected",
    },
    Hook {
        tracepoint: "inet_sk_error_report",
        ways: ways!("inet_sk_error_report", "netdiag_sock_error", "netdiag_sock_error_raw"),
        lost: "errors that ICMP brings to UDP sockets",
    },
];

/// The running programs and what they counted.
pub struct KernelRejects {
    events: Events,
    reasons: ResetReasons,
}

/// What the plan said, until the hooks are attached.
pub(super) struct PlannedRejects {
    events: Planned,
    reasons: ResetReasons,
}

/// Names of `enum sk_rst_reason`; None where RSTs have no reason.
struct ResetReasons(Option<HashMap<u32, String>>);

impl KernelRejects {
    pub(super) fn plan(btf: &Btf<'_>, size: EventSize, plan: &mut Plan) -> Result<PlannedRejects, LoadError> {
        layout::packet(btf, plan)?;
        layout::socket(btf, plan)?;
        let arguments = btf.tracepoint_arguments("tcp_send_reset").unwrap_or_default();
        let has_reason = arguments.get(2) == Some(&"sk_rst_reason");
        plan.set("HAS_RESET_REASON", u32::from(has_reason));
        let reasons = ResetReasons(has_reason.then(|| reset_reasons(btf)));
        Ok(PlannedRejects { events: Events::plan(btf, &NAMES, &HOOKS, size, plan), reasons })
    }

    pub(super) fn attach(object: &Object, planned: PlannedRejects) -> Result<Self, LoadError> {
        Ok(Self { events: Events::attach(object, planned.events)?, reasons: planned.reasons })
    }

    pub fn checks(&self) -> Vec<Check> {
        self.events.checks()
    }

    /// Takes what the kernel counted since the last harvest. Blocks for 10 to 20 ms.
    pub fn harvest(&mut self, now: Timestamp) {
        self.events.harvest(now);
    }

    /// What was harvested in the window. `resolve` says whose namespace a number is.
    pub fn observe(&self, now: Timestamp, window: Window, resolve: &dyn Fn(u64) -> Owner) -> Rejects {
        let view = self.events.view(now, window, resolve);
        let sum = &view.sum;
        let accounts = RejectAccounts {
            // What has no key because it could not be read is a refusal all the same.
            total: sum.total + sum.unparsed,
            icmp_sent: sum.of(record::ICMP_SENT),
            resets_sent: sum.of(record::RESET_SENT) + sum.of(record::ABORTED),
            resets_received: sum.of(record::RESET_RECEIVED),
            errors: sum.of(record::ERROR),
            attributed: sum.attributed,
            coarse: sum.coarse,
            foreign_netns: view.foreign,
            total_only: sum.total_only,
            unparsed: sum.unparsed,
            shed: sum.shed,
            missed: view.missed,
            forgotten: view.forgotten,
        };
        let mut keys = view.keys;
        keys.sort_by(|(a_owner, a, a_count), (b_owner, b, b_count)| {
            let order =
                |key: &Key| (key.kind, key.detail, key.ends.map(|ends| (ends.source, ends.destination, ends.port)));
            (Reverse(a_count.packets), a_owner, order(a)).cmp(&(Reverse(b_count.packets), b_owner, order(b)))
        });
        let omitted_groups = keys.len().saturating_sub(ANSWER_GROUPS) as u64;
        let group = |(netns, key, count): (Owner, Key, crate::window::Count)| {
            Some(RejectGroup {
                netns,
                kind: self.kind(&key)?,
                tuple: tuple(&key),
                packets: count.packets,
                first_at: view.clock.at(count.first_ns),
                last_at: view.clock.at(count.last_ns),
            })
        };
        let groups = keys.into_iter().take(ANSWER_GROUPS).filter_map(group).collect();
        let mut unseen = self.events.unseen();
        unseen.extend(blind());
        Rejects { since: view.since, window_s: view.window_s, accounts, groups, omitted_groups, unseen }
    }

    /// None for a kind of a newer program.
    fn kind(&self, key: &Key) -> Option<RejectKind> {
        let [code, icmp_type, ..] = key.detail.to_le_bytes();
        Some(match key.kind {
            record::ICMP_SENT => RejectKind::IcmpSent { icmp_type, code },
            record::RESET_SENT => RejectKind::ResetSent { reason: self.reasons.name(key.detail) },
            record::ABORTED => RejectKind::Aborted { reason: self.reasons.name(key.detail) },
            record::RESET_RECEIVED => RejectKind::ResetReceived { state: state(key.detail) },
            record::ERROR => RejectKind::Error { errno: key.detail.cast_signed() },
            _ => return None,
        })
    }
}

impl Export for KernelRejects {
    fn export(&self, into: &mut Families) {
        let all = self.events.since_start();
        let sum = &all.sum;
        for (kind, packets) in [
            ("icmp_sent", sum.of(record::ICMP_SENT)),
            ("reset_sent", sum.of(record::RESET_SENT)),
            ("aborted", sum.of(record::ABORTED)),
            ("reset_received", sum.of(record::RESET_RECEIVED)),
            ("socket_error", sum.of(record::ERROR)),
        ] {
            into.add(&catalogue::REJECTS, &[kind], packets);
        }
        for (level, packets) in [
            ("attributed", sum.attributed),
            ("coarse", sum.coarse),
            ("kind_only", sum.total_only),
            ("unparsed", sum.unparsed),
            ("shed", sum.shed),
        ] {
            into.add(&catalogue::REJECTS_ACCOUNTED, &[level], packets);
        }
        for (cause, events) in [("program_busy", all.missed), ("group_forgotten", all.forgotten)] {
            into.add(&catalogue::LOST_EVENTS, &["rejects", cause], events);
        }
    }
}

/// What no tracepoint of any kernel shows.
fn blind() -> [Gap; 2] {
    let gap = |what: &str, why: &str| Gap {
        what: what.to_owned(),
        node: None,
        reason: GapReason::Kernel,
        why: why.to_owned(),
        remedy: "ask for the rules and for the counters of each namespace".to_owned(),
    };
    [
        gap("TCP resets that packet filters send", "nf_send_reset() has no tracepoint"),
        gap("ICMPv6 errors sent", "icmp6_send() has no tracepoint"),
    ]
}

fn tuple(key: &Key) -> Option<DropTuple> {
    let ends = key.ends?;
    Some(DropTuple {
        source: ends.source,
        destination: ends.destination,
        protocol: Protocol::from_number(ends.protocol),
        protocol_number: ends.protocol,
        service_port: ends.port,
        port_is_destination: key.flags & FLAG_DESTINATION != 0,
    })
}

impl ResetReasons {
    fn name(&self, reason: u32) -> String {
        let Some(names) = &self.0 else { return "UNREPORTED".to_owned() };
        names.get(&reason).cloned().unwrap_or_else(|| format!("REASON_{reason:#x}"))
    }
}

/// Reasons of its own, and behind them those of drops that led to a RST.
fn reset_reasons(btf: &Btf<'_>) -> HashMap<u32, String> {
    let name = |(name, value): (&str, i64)| {
        let short = name.strip_prefix("SK_RST_REASON_").filter(|short| *short != "MAX")?;
        Some((u32::try_from(value).ok()?, short.to_owned()))
    };
    btf.enumerators("sk_rst_reason").into_iter().filter_map(name).collect()
}

/// include/net/tcp_states.h, the same since Linux 2.6 but for its end.
fn state(number: u32) -> String {
    const STATES: [&str; 13] = [
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECV",
        "FIN_WAIT1",
        "FIN_WAIT2",
        "TIME_WAIT",
        "CLOSE",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
        "CLOSING",
        "NEW_SYN_RECV",
        "BOUND_INACTIVE",
    ];
    let name = usize::try_from(number).ok().and_then(|number| STATES.get(number.checked_sub(1)?));
    name.map_or_else(|| format!("STATE_{number}"), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_their_names() {
        assert_eq!((state(1), state(2), state(7)), ("ESTABLISHED".into(), "SYN_SENT".into(), "CLOSE".into()));
        assert_eq!((state(0), state(99)), ("STATE_0".into(), "STATE_99".into()));
    }

    #[test]
    fn reasons_without_names_keep_their_number() {
        let reasons = ResetReasons(Some(HashMap::from([(1, "NO_SOCKET".to_owned())])));
        assert_eq!((reasons.name(1), reasons.name(77)), ("NO_SOCKET".into(), "REASON_0x4d".into()));
        assert_eq!(ResetReasons(None).name(0), "UNREPORTED");
    }
}
