//! Whether the control groups behind an endpoint run out of their CPU quota.

use jiff::Timestamp;
use netdiag_common::observation::socket::{ControlGroup, CpuGroup, Sockets};
use netdiag_common::{Gap, GapReason};

use crate::evidence::Seen;
use crate::evidence::object::{Object, Pod};
use crate::finding::Proof;
use crate::path::Backend;

/// Share of its periods in which a group ran out of its quota, in percent: in every second one it is not there for anybody.
const THROTTLED_PERCENT: u64 = 50;
/// A second of periods. Fewer are a burst, as the start of a process is one.
const FEWEST_PERIODS: u64 = 10;
/// The agent looks at each pod once a minute, and whenever somebody asks: what has not grown for that long is over.
const NOW_S: i64 = 60;

/// A group without CPU time.
pub(super) struct Shortage {
    /// `container web`.
    pub group: String,
    /// `20m`.
    pub limit: String,
    /// `throttled in 48 of 50 periods in 60 s, with 4.1 s of waiting`.
    pub what: String,
    quota_us: u64,
    period_us: Option<u64>,
}

impl Shortage {
    pub(super) fn proofs(&self, pod: &Pod, backend: &Backend, at: Timestamp) -> Vec<Proof> {
        let Self { group, limit, what, quota_us, period_us } = self;
        let source = format!("control groups of {}", pod.reference());
        let period = period_us.map(|period_us| format!(" of {period_us} µs")).unwrap_or_default();
        let quota = format!("{group} may run for {quota_us} µs in each period{period}: limit {limit}");
        let throttled = format!("{group} was {what}");
        vec![
            Proof::programmed(&source, &backend.node, at, quota),
            Proof::observed(&source, &backend.node, at, throttled),
        ]
    }
}

/// The group behind the endpoint that lacks CPU time most.
pub(super) fn shortage(pod: &Pod, backend: &Backend, sockets: Seen<Sockets>) -> Option<Shortage> {
    let limited = serving(backend, sockets.value).filter_map(|group| {
        let cpu = group.cpu.as_ref()?;
        Some((group, cpu, cpu.quota_us?))
    });
    let short = limited.filter(|(_, cpu, _)| is_used_up(cpu, sockets.at));
    let (group, cpu, quota_us) = short.max_by_key(|(_, cpu, _)| share(cpu))?;
    let (throttled, periods) = (cpu.throttled_periods.grown(), cpu.periods.grown());
    let (waited, window_s) = (seconds(cpu.throttled_us.grown()), sockets.value.window_s);
    Some(Shortage {
        group: name(pod, group),
        limit: limit(quota_us, cpu.period_us),
        what: format!("throttled in {throttled} of {periods} periods in {window_s:.0} s, with {waited} of waiting"),
        quota_us,
        period_us: cpu.period_us,
    })
}

/// The groups of the process that has the endpoint's port: its container's and the pod's. Where nobody can tell whose the port
/// is, every container's.
fn serving<'s>(backend: &Backend, sockets: &'s Sockets) -> impl Iterator<Item = &'s ControlGroup> + use<'s> {
    let listener = sockets.listeners.iter().find(|queue| queue.address.port() == backend.port);
    let owner = listener.and_then(|queue| queue.process.as_ref()?.container_id.as_deref());
    sockets.groups.iter().filter(move |group| match (&group.container_id, owner) {
        (Some(id), Some(owner)) => id == owner,
        _ => true,
    })
}

/// Ran out of its quota most of the time, and still does.
fn is_used_up(cpu: &CpuGroup, at: Timestamp) -> bool {
    let last_at = cpu.throttled_periods.last_at;
    let is_now = last_at.is_some_and(|last_at| at.duration_since(last_at).as_secs() <= NOW_S);
    is_now && cpu.throttled_periods.grown() >= FEWEST_PERIODS && share(cpu) >= THROTTLED_PERCENT
}

/// Periods in which the quota was used up, of those in which the group wanted to run, in percent.
fn share(cpu: &CpuGroup) -> u64 {
    cpu.throttled_periods.grown() * 100 / cpu.periods.grown().max(1)
}

fn name(pod: &Pod, group: &ControlGroup) -> String {
    let Some(id) = &group.container_id else { return "the group of all its containers".to_owned() };
    // The API's ids carry their runtime's scheme.
    let status = pod.status.container_statuses.iter().find(|status| status.container_id.ends_with(id.as_str()));
    status.map_or_else(|| format!("container {id:.12}"), |status| format!("container {}", status.name))
}

/// As Kubernetes writes it: `20m`, `2`. Of a period that is not known: the quota.
fn limit(quota_us: u64, period_us: Option<u64>) -> String {
    let Some(period_us) = period_us.filter(|period_us| *period_us > 0) else {
        return format!("{quota_us} µs a period");
    };
    let millicores = quota_us.saturating_mul(1_000) / period_us;
    if millicores.is_multiple_of(1_000) { (millicores / 1_000).to_string() } else { format!("{millicores}m") }
}

fn seconds(microseconds: u64) -> String {
    format!("{}.{} s", microseconds / 1_000_000, microseconds / 100_000 % 10)
}

/// Why it is not known whether the server is throttled now.
pub(super) fn unread(pod: &Pod, backend: &Backend, sockets: &Sockets) -> Option<Gap> {
    let gap = |why: String, remedy: &str| Gap {
        what: format!("whether {} uses up its CPU limit", pod.reference()),
        node: Some(backend.node.clone()),
        reason: GapReason::NotRecorded,
        why,
        remedy: remedy.to_owned(),
    };
    if sockets.groups.iter().all(|group| group.cpu.is_none()) && !sockets.left_out.is_empty() {
        let why = format!("no CPU controller of its control groups was read: {}", sockets.left_out.join("; "));
        return Some(gap(
            why,
            "mount the node's /sys/fs/cgroup into the agent's pod, or read cpu.stat in the container",
        ));
    }
    let is_first = |cpu: &CpuGroup| {
        cpu.quota_us.is_some() && cpu.throttled_periods.value > 0 && cpu.throttled_periods.delta.is_none()
    };
    let is_first_look = serving(backend, sockets).filter_map(|group| group.cpu.as_ref()).any(is_first);
    is_first_look.then(|| {
        let why = "the agent looks at its control groups for the first time, so the growth of cpu.stat is not known";
        gap(why.to_owned(), "ask again in a minute")
    })
}

#[cfg(test)]
mod tests {
    use netdiag_common::observation::counter::Counter;

    use super::*;

    #[test]
    fn limits_are_written_as_in_a_manifest() {
        assert_eq!(limit(2_000, Some(100_000)), "20m");
        assert_eq!(limit(200_000, Some(100_000)), "2");
        assert_eq!(limit(25_000, Some(50_000)), "500m");
        assert_eq!(limit(25_000, None), "25000 µs a period");
        assert_eq!(seconds(4_180_000), "4.1 s");
    }

    #[test]
    fn group_that_ran_short_at_its_start_has_time_now() {
        let at = |text: &str| -> Timestamp { text.parse().expect("a time") };
        let counter = |value, last_at| Counter { value, delta: Some(value), last_at, ..Counter::default() };
        let group = |throttled: u64, last_at: Option<Timestamp>| CpuGroup {
            quota_us: Some(2_000),
            periods: counter(50, None),
            throttled_periods: counter(throttled, last_at),
            ..CpuGroup::default()
        };
        let now = at("2026-01-01T12:00:00Z");
        assert!(is_used_up(&group(48, Some(at("2026-01-01T11:59:58Z"))), now));
        assert!(!is_used_up(&group(48, Some(at("2026-01-01T11:57:58Z"))), now));
        assert!(!is_used_up(&group(20, Some(at("2026-01-01T11:59:58Z"))), now));
        assert!(!is_used_up(&group(48, None), now));
    }
}
