//! How long ago the latest packet of an entry was: the kernel sets an entry's remaining time to its timeout with each
//! packet (`nf_ct_refresh_acct`), so the difference is the time since.

use std::collections::BTreeMap;

use netdiag_common::observation::Protocol;

use super::entry::{Entry, state_name};

/// The timeouts in force, by the sysctl's name without `nf_conntrack_`. Rules may give a flow other ones (`ct timeout`): then
/// what follows from these is wrong, and only shows when it would be negative.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timeouts(BTreeMap<String, u32>);

impl Timeouts {
    pub fn new(settings: &BTreeMap<String, String>) -> Self {
        let timeouts = settings
            .iter()
            .filter(|(name, _)| name.contains("timeout"))
            .filter_map(|(name, value)| Some((name.strip_prefix("nf_conntrack_")?.to_owned(), value.parse().ok()?)));
        Self(timeouts.collect())
    }

    /// Seconds since the latest packet, when the timeout of the entry's state is known.
    pub fn latest_packet_s(&self, entry: &Entry) -> Option<u32> {
        // The timer of an offloaded flow is held up by the offload.
        if entry.is_offloaded() {
            return None;
        }
        let remaining = entry.expires_s?;
        self.in_force(entry, remaining)?.checked_sub(remaining)
    }

    fn in_force(&self, entry: &Entry, remaining: u32) -> Option<u32> {
        let get = |name: &str| self.0.get(name).copied();
        match Protocol::from_number(entry.protocol)? {
            Protocol::Tcp => {
                // With retransmissions, unacknowledged data or a closed window a state's timeout is cut to one of these. An entry
                // with less time left may be cut, or idle and near its end (`nf_conntrack_tcp_packet`).
                let retransmitted = get("tcp_timeout_max_retrans");
                let unacknowledged = get("tcp_timeout_unacknowledged");
                let cut = retransmitted.max(unacknowledged);
                let whole = get(&format!("tcp_timeout_{}", state_name(entry.protocol, entry.state?).to_lowercase()))?;
                if cut.is_none_or(|cut| remaining > cut || whole <= cut) {
                    return Some(whole);
                }
                // The entry says so itself of unacknowledged data, but not by which of both, nor that a reset, which leaves less
                // still, came after it.
                let is_cut = entry.unacknowledged && remaining > get("tcp_timeout_close")?;
                cut.filter(|_| is_cut && retransmitted == unacknowledged)
            }
            Protocol::Udp if entry.is_assured() => get("udp_timeout_stream"),
            Protocol::Udp => get("udp_timeout"),
            Protocol::Icmp => get("icmp_timeout"),
            Protocol::Icmpv6 => get("icmpv6_timeout"),
            Protocol::Ipip => get("generic_timeout"),
            Protocol::Sctp => get(&format!("sctp_timeout_{}", state_name(entry.protocol, entry.state?).to_lowercase())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use netdiag_common::observation::flow::FlowTuple;

    use super::*;

    fn timeouts() -> Timeouts {
        let settings = [
            ("nf_conntrack_udp_timeout", "30"),
            ("nf_conntrack_udp_timeout_stream", "120"),
            ("nf_conntrack_tcp_timeout_established", "86400"),
            ("nf_conntrack_tcp_timeout_time_wait", "120"),
            ("nf_conntrack_tcp_timeout_close", "10"),
            ("nf_conntrack_tcp_timeout_max_retrans", "300"),
            ("nf_conntrack_tcp_timeout_unacknowledged", "300"),
        ];
        Timeouts::new(&settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
    }

    fn entry(protocol: u8, status: u32, state: Option<u8>, expires_s: u32) -> Entry {
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let ends = FlowTuple { source: nowhere, destination: nowhere, source_port: 0, destination_port: 0 };
        Entry {
            protocol,
            original: ends,
            reply: ends,
            status,
            state,
            unacknowledged: false,
            expires_s: Some(expires_s),
            zone: 0,
            mark: 0,
        }
    }

    #[test]
    fn time_since_the_latest_packet_follows_from_the_remaining_time() {
        let timeouts = timeouts();
        assert_eq!(timeouts.latest_packet_s(&entry(17, 0, None, 29)), Some(1));
        assert_eq!(timeouts.latest_packet_s(&entry(17, 0b110, None, 100)), Some(20));
        assert_eq!(timeouts.latest_packet_s(&entry(6, 0b110, Some(3), 86_000)), Some(400));
        assert_eq!(timeouts.latest_packet_s(&entry(6, 0b110, Some(7), 119)), Some(1));
    }

    #[test]
    fn shortened_timeout_is_not_taken_for_a_long_silence() {
        assert_eq!(timeouts().latest_packet_s(&entry(6, 0b110, Some(3), 299)), None);
    }

    #[test]
    fn unacknowledged_data_tells_that_the_timeout_was_shortened() {
        let unacknowledged = |expires_s| Entry { unacknowledged: true, ..entry(6, 0b110, Some(3), expires_s) };
        assert_eq!(timeouts().latest_packet_s(&unacknowledged(299)), Some(1));
        assert_eq!(timeouts().latest_packet_s(&unacknowledged(180)), Some(120));
        assert_eq!(timeouts().latest_packet_s(&unacknowledged(9)), None, "a reset may have shortened it once more");
        let mut differing = timeouts();
        differing.0.insert("tcp_timeout_max_retrans".to_owned(), 250);
        assert_eq!(differing.latest_packet_s(&unacknowledged(240)), None, "it may be either");
    }

    #[test]
    fn timeout_of_a_rule_is_not_guessed() {
        assert_eq!(timeouts().latest_packet_s(&entry(17, 0, None, 500)), None);
        assert_eq!(timeouts().latest_packet_s(&entry(47, 0, None, 5)), None);
    }
}
