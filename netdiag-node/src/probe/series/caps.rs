//! What the agent may do as a whole, whatever a server asks: where to, how fast, how many at one time.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netdiag_common::GapReason;
use netdiag_common::observation::series::{FailureClass, Probe, ProbeFailure, ProbeStage};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::gap::{Failure, OtherFailure};

/// Packets of all series together. A TCP connection counts as one: what follows its SYN answers the far side.
pub const PACKETS_PER_S: u64 = 25_000;
/// Bytes of all series together: a quarter of a link of 1 Gbit/s.
const BYTES_PER_S: u64 = 32 * 1024 * 1024;
/// Attempts of all series that are on their way at one time.
pub const MAX_CONCURRENT: usize = 1_000;
/// Series at one time. Each has one or two threads.
pub const MAX_SERIES: usize = 4;
/// What may go at once after a pause: the reactor's timers are not finer than a millisecond.
const BURST: Duration = Duration::from_millis(5);

/// Networks that clusters are made of: this machine, links, private addresses (RFC 1918, RFC 4193), and the carriers' range
/// (RFC 6598) that clouds give to pods.
const CLUSTER_NETWORKS: [&str; 9] = [
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
];

/// Addresses inside those networks where clouds hand out credentials: EC2, GCE, Azure and others (IPv4, then EC2 and GCE by
/// IPv6), ECS and EKS (task role, pod identity), Alibaba. A probe must not be a way to them from another pod's namespace.
const CREDENTIALS: [&str; 7] = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "100.100.100.200",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
];

const NO_THROUGHPUT: &str = "this agent makes no throughput probes: they fill the link that the pods use";
const WITH_THROUGHPUT: &str =
    "start the agents with --probe-throughput (in the DaemonSet: NETDIAG_PROBE_THROUGHPUT=true)";

/// Where this agent may send to.
#[derive(Debug, Clone)]
pub struct AllowList {
    /// Of the operator: `--probe-allow`. Stronger than [`CREDENTIALS`].
    added: Vec<IpNet>,
    networks: Vec<IpNet>,
    never: Vec<IpAddr>,
}

/// A word of `--probe-allow` that is no network.
#[derive(Debug, thiserror::Error)]
#[error("expected a network or an address (203.0.113.0/24, 2001:db8::/32), found {word:?}")]
pub struct AllowListError {
    word: String,
}

/// Where all series of an agent meet.
pub(super) struct Caps {
    allowed: AllowList,
    packets: Rate,
    bytes: Rate,
    attempts: Semaphore,
    series: Arc<Semaphore>,
    /// Throughput probes: none where the operator does not want them.
    throughput: Option<Semaphore>,
}

impl AllowList {
    /// The cluster networks, and what the operator adds.
    fn with(added: &[IpNet]) -> Self {
        Self {
            added: added.to_vec(),
            networks: CLUSTER_NETWORKS.iter().filter_map(|text| text.parse().ok()).collect(),
            never: CREDENTIALS.iter().filter_map(|text| text.parse().ok()).collect(),
        }
    }

    /// The words of the command line: networks with commas between them.
    pub fn parse(words: &str) -> Result<Self, AllowListError> {
        let words = words.split(',').map(str::trim).filter(|word| !word.is_empty());
        Ok(Self::with(&words.map(Self::network).collect::<Result<Vec<_>, _>>()?))
    }

    /// An address alone is a network of one.
    fn network(word: &str) -> Result<IpNet, AllowListError> {
        let address = || IpAddr::from_str(word).map(IpNet::from);
        IpNet::from_str(word).or_else(|_| address()).map_err(|_| AllowListError { word: word.to_owned() })
    }

    fn allows(&self, to: IpAddr) -> bool {
        // `::ffff:10.0.0.1` is sent as 10.0.0.1.
        let to = to.to_canonical();
        let is_in = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&to));
        is_in(&self.added) || (is_in(&self.networks) && !self.never.contains(&to))
    }

    /// Why nothing may be sent there, and the remedy; none when it may.
    pub(crate) fn refusal(&self, to: IpAddr) -> Option<(String, String)> {
        if self.allows(to) {
            return None;
        }
        let why = if self.never.contains(&to.to_canonical()) {
            format!("this agent may not probe {to}: clouds hand out credentials there")
        } else {
            format!(
                "this agent may not probe {to}: it is in none of the cluster networks (private, link-local, loopback)"
            )
        };
        Some((why, allow_with(to)))
    }
}

impl Default for AllowList {
    fn default() -> Self {
        Self::with(&[])
    }
}

impl Caps {
    pub(super) fn new(allowed: AllowList, throughput: bool) -> Self {
        let now = Instant::now();
        Self {
            allowed,
            packets: Rate::new(PACKETS_PER_S, now),
            bytes: Rate::new(BYTES_PER_S, now),
            attempts: Semaphore::new(MAX_CONCURRENT),
            series: Arc::new(Semaphore::new(MAX_SERIES)),
            // They would measure each other.
            throughput: throughput.then(|| Semaphore::new(1)),
        }
    }

    /// Whether this agent may send to an address at all.
    pub(super) fn allow(&self, to: IpAddr) -> Result<(), ProbeFailure> {
        let Some((why, remedy)) = self.allowed.refusal(to) else { return Ok(()) };
        let why = format!("{why}; {remedy}");
        let class = FailureClass::Limit;
        Err(ProbeFailure { stage: ProbeStage::Socket, class, errno: None, said_by: None, icmp: None, why })
    }

    /// The whole request is refused for the address that it names.
    pub(super) fn refused(failure: &ProbeFailure) -> Failure {
        let (why, remedy) = failure.why.split_once("; ").unwrap_or((&failure.why, "ask for another address"));
        not_allowed(why, remedy)
    }

    /// Waits for the share of packets and bytes.
    pub(super) async fn spend(&self, packets: u32, bytes: u64) {
        let wait = self.take(Instant::now(), packets, bytes);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes that share, and says how long to wait before it is used.
    fn take(&self, now: Instant, packets: u32, bytes: u64) -> Duration {
        self.packets.take(now, packets.into()).max(self.bytes.take(now, bytes))
    }

    /// A place for a throughput probe.
    pub(super) async fn fill_link(&self) -> Result<SemaphorePermit<'_>, ProbeFailure> {
        match &self.throughput {
            Some(turn) => Ok(turn.acquire().await.expect("the semaphore is never closed")),
            None => {
                let (class, why) = (FailureClass::Limit, format!("{NO_THROUGHPUT}; {WITH_THROUGHPUT}"));
                Err(ProbeFailure { stage: ProbeStage::Socket, class, errno: None, said_by: None, icmp: None, why })
            }
        }
    }

    /// Whether this agent makes such probes at all.
    pub(super) fn allow_kind(&self, probe: &Probe) -> Result<(), Failure> {
        match probe {
            Probe::Throughput(_) if self.throughput.is_none() => Err(not_allowed(NO_THROUGHPUT, WITH_THROUGHPUT)),
            _ => Ok(()),
        }
    }

    /// A place for one attempt.
    pub(super) async fn attempt(&self) -> SemaphorePermit<'_> {
        self.attempts.acquire().await.expect("the semaphore is never closed")
    }

    /// A place for a series.
    pub(super) async fn series(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.series).acquire_owned().await.expect("the semaphore is never closed")
    }

    /// No place came.
    pub(super) fn crowded() -> Failure {
        not_allowed(
            &format!("{MAX_SERIES} series of probes run on this node, which is the limit"),
            "ask again when one of them has ended, after 30 seconds at most",
        )
    }
}

fn allow_with(to: IpAddr) -> String {
    let network = IpNet::from(to.to_canonical());
    format!("start the agents with --probe-allow {network} (in the DaemonSet: NETDIAG_PROBE_ALLOW={network})")
}

pub(super) fn not_allowed(why: &str, remedy: &str) -> Failure {
    Failure::Other(OtherFailure { reason: GapReason::NotAllowed, why: why.to_owned(), remedy: remedy.to_owned() })
}

/// So much each second, evenly: the generic cell rate algorithm, without a lock.
struct Rate {
    per_s: u64,
    started: Instant,
    /// When what was taken until now will have been sent, nanoseconds after `started`.
    sent_at_ns: AtomicU64,
}

impl Rate {
    fn new(per_s: u64, started: Instant) -> Self {
        Self { per_s, started, sent_at_ns: AtomicU64::new(0) }
    }

    /// Takes `amount`, and says how long to wait before it is used.
    fn take(&self, now: Instant, amount: u64) -> Duration {
        let now_ns = u64::try_from(now.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX);
        let burst_ns = u64::try_from(BURST.as_nanos()).expect("milliseconds fit");
        let cost_ns = amount.saturating_mul(1_000_000_000) / self.per_s;
        let next = |sent_at_ns: u64| sent_at_ns.max(now_ns).saturating_add(cost_ns);
        let update = self.sent_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| Some(next(before)));
        let sent_at_ns = next(update.unwrap_or_else(|before| before));
        Duration::from_nanos(sent_at_ns.saturating_sub(now_ns).saturating_sub(burst_ns.max(cost_ns)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use futures::FutureExt as _;

    use super::*;

    fn allows(list: &AllowList, to: &str) -> bool {
        list.allows(to.parse().unwrap())
    }

    #[test]
    fn cluster_networks_are_allowed_and_nothing_else() {
        let list = AllowList::default();
        assert_eq!((list.networks.len(), list.never.len()), (CLUSTER_NETWORKS.len(), CREDENTIALS.len()));
        for inside in [
            "10.96.0.1",
            "172.18.0.2",
            "192.168.1.1",
            "100.64.0.9",
            "127.0.0.1",
            "169.254.20.10",
            "::1",
            "fd00::7",
            "fe80::1",
        ] {
            assert!(allows(&list, inside), "{inside}");
        }
        for outside in [
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "2001:db8::1",
            "ff02::1",
            "::",
        ] {
            assert!(!allows(&list, outside), "{outside}");
        }
    }

    #[test]
    fn where_clouds_hand_out_credentials_only_the_operator_may_send() {
        let list = AllowList::default();
        for address in CREDENTIALS {
            assert!(!allows(&list, address), "{address}");
        }
        assert!(!allows(&list, "::ffff:169.254.169.254"), "the same address by another name");
        let list = AllowList::parse("169.254.169.254").unwrap();
        assert!(allows(&list, "169.254.169.254"));
    }

    #[test]
    fn what_the_operator_adds_is_allowed() {
        let list = AllowList::parse("203.0.113.0/24, 2001:db8::1").unwrap();
        assert!(allows(&list, "203.0.113.7") && allows(&list, "2001:db8::1") && !allows(&list, "2001:db8::2"));
        assert!(AllowList::parse("10.0.0.1,example.com").unwrap_err().to_string().contains("example.com"));
    }

    #[test]
    fn refusal_names_the_way_out() {
        let caps = Caps::new(AllowList::default(), false);
        let failure = caps.allow("8.8.8.8".parse().unwrap()).unwrap_err();
        assert!(failure.why.contains("--probe-allow 8.8.8.8/32"), "{}", failure.why);
        let Failure::Other(refused) = Caps::refused(&failure) else { panic!() };
        assert!(refused.why.ends_with("loopback)") && refused.remedy.contains("NETDIAG_PROBE_ALLOW"), "{refused:?}");
        assert!(caps.allow(Ipv6Addr::LOCALHOST.into()).is_ok());
    }

    #[test]
    fn more_than_the_rate_waits_its_turn() {
        let now = Instant::now();
        let rate = Rate::new(1_000, now);
        // The burst is free; then each waits a millisecond longer than the one before.
        let waits: Vec<u128> = (0..100).map(|_| rate.take(now, 1).as_millis()).collect();
        assert_eq!(waits[..7], [0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(waits[99], 95);
        assert_eq!(rate.take(now + Duration::from_secs(1), 1), Duration::ZERO, "after a pause");
    }

    #[test]
    fn one_large_packet_goes_at_once() {
        let now = Instant::now();
        let rate = Rate::new(1_000, now);
        assert_eq!(rate.take(now, 60_000), Duration::ZERO, "it waits for nothing that was taken before it");
        assert!(rate.take(now, 1) > Duration::from_secs(50));
    }

    /// When as many series as there may be send as fast as they can for two seconds, all of packets of this size.
    fn sent(caps: &Caps, bytes: u64) -> Vec<Duration> {
        let mut next = [Duration::ZERO; MAX_SERIES];
        let mut sent = Vec::new();
        loop {
            let series = (0..MAX_SERIES).min_by_key(|series| next[*series]).expect("there are some");
            let at = next[series];
            if at >= Duration::from_secs(2) {
                sent.sort();
                return sent;
            }
            next[series] = at + caps.take(caps.packets.started + at, 1, bytes);
            sent.push(next[series]);
        }
    }

    #[test]
    fn all_series_together_keep_to_one_rate() {
        let burst = |per_s: u64| per_s * u64::try_from(BURST.as_millis()).unwrap() / 1_000;
        let large = 64 * 1024;
        for (bytes, per_s) in [(0, PACKETS_PER_S), (large, BYTES_PER_S / large)] {
            let sent = sent(&Caps::new(AllowList::default(), false), bytes);
            let at_most = usize::try_from(per_s + burst(per_s)).unwrap() + MAX_SERIES;
            let in_a_second = |first: usize| sent.get(first + at_most).map(|last| last.saturating_sub(sent[first]));
            let gaps: Vec<Duration> = (0..sent.len()).filter_map(in_a_second).collect();
            assert!(!gaps.is_empty() && gaps.iter().all(|gap| *gap >= Duration::from_secs(1)), "{bytes} bytes");
            let all = u64::try_from(sent.len()).unwrap();
            assert!(all >= 2 * per_s, "{all} packets of {bytes} bytes: the rate is not used");
        }
    }

    #[test]
    fn attempts_and_series_of_all_together_have_so_many_places() {
        let caps = Caps::new(AllowList::default(), false);
        let mut attempts: Vec<_> =
            (0..MAX_CONCURRENT).map(|_| caps.attempt().now_or_never().expect("a place")).collect();
        assert!(caps.attempt().now_or_never().is_none());
        attempts.pop();
        assert!(caps.attempt().now_or_never().is_some());
        let series: Vec<_> = (0..MAX_SERIES).map(|_| caps.series().now_or_never().expect("a place")).collect();
        assert!(caps.series().now_or_never().is_none());
        drop(series);
        assert!(caps.series().now_or_never().is_some());
    }
}
