//! Lists of the match recent in the calling thread's network namespace (`/proc/net/xt_recent`).

use std::time::Duration;

use netdiag_common::forwarding::Fact;
use netdiag_common::forwarding::recent::RecentEntry;
use nix::time::{ClockId, clock_getres, clock_gettime};

use crate::host::{ReadError, file, own_net};

/// A list has 100 addresses unless the module was told otherwise, each with 255 packets of 21 digits at most.
const MAX_BYTES: u64 = 16 << 20;

/// Unknown where the list could not be read: a rule that asks is then followed both ways, with this as the reason.
pub(super) fn found(list: &str) -> Fact<Vec<RecentEntry>> {
    // The kernel takes no other names (`xt_check_proc_name`).
    if list.is_empty() || list.contains('/') || matches!(list, "." | "..") {
        return Fact::Unknown(format!("{list:?} is no name of a list"));
    }
    let Some(ticks) = Ticks::now() else {
        return Fact::Unknown("the kernel does not say how long its ticks are".into());
    };
    let read = file::text_if_there(&own_net().join("xt_recent").join(list), MAX_BYTES);
    match read.and_then(|text| text.map(|text| parse(&text, ticks)).transpose()) {
        Ok(Some(entries)) => Fact::Known(entries),
        Ok(None) => Fact::Unknown(format!("list {list} is not there")),
        Err(error) => Fact::Unknown(format!("list {list} could not be read: {error}")),
    }
}

/// The kernel's count of ticks (`jiffies`), which is not shown to those who may not see all of /proc.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    now: u64,
    length: Duration,
}

impl Ticks {
    fn now() -> Option<Self> {
        // The resolution of the clock that only moves with ticks.
        let length = Duration::from(clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).ok()?);
        let since_boot = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?);
        Self::after(since_boot, length)
    }

    /// Counted from five minutes before 2^32 (`INITIAL_JIFFIES` of a 64-bit kernel), about since the clock began.
    fn after(since_boot: Duration, length: Duration) -> Option<Self> {
        const EARLY: Duration = Duration::from_mins(5);
        let ticks = |time: Duration| u64::try_from(time.as_nanos().checked_div(length.as_nanos())?).ok();
        let first = (1_u64 << 32).checked_sub(ticks(EARLY)?)?;
        Some(Self { now: first.checked_add(ticks(since_boot)?)?, length })
    }

    fn age_ms(self, stamp: u64) -> u64 {
        let age = u128::from(self.now.saturating_sub(stamp)) * self.length.as_nanos() / 1_000_000;
        u64::try_from(age).unwrap_or(u64::MAX)
    }
}

/// One line for each address (`recent_seq_show` of xt_recent.c, Linux 6.18):
/// `src=10.1.0.2 ttl: 63 last_seen: 4298454974 oldest_pkt: 2 4298454900, 4298454974`
fn parse(text: &str, ticks: Ticks) -> Result<Vec<RecentEntry>, ReadError> {
    text.lines().map(|line| entry(line, ticks).ok_or_else(|| malformed(line))).collect()
}

fn entry(line: &str, ticks: Ticks) -> Option<RecentEntry> {
    let mut words = line.split_whitespace();
    let address = words.next()?.strip_prefix("src=")?.parse().ok()?;
    let mut after = |name: &str| if words.next()? == name { words.next() } else { None };
    let hops = after("ttl:")?.parse().ok()?;
    after("last_seen:")?;
    after("oldest_pkt:")?;
    let ages = words.map(|stamp| stamp.trim_end_matches(',').parse::<u64>().ok().map(|stamp| ticks.age_ms(stamp)));
    Some(RecentEntry { address, hops, ages_ms: ages.collect::<Option<_>>()? })
}

fn malformed(line: &str) -> ReadError {
    ReadError::Malformed { what: "a list of the match recent".into(), why: format!("{line:?} is no line of one") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As a kernel with `CONFIG_HZ=250` counts, an hour after its start.
    fn ticks() -> Ticks {
        Ticks::after(Duration::from_hours(1), Duration::from_millis(4)).unwrap()
    }

    #[test]
    fn ticks_are_told_as_ages() {
        let (now, first) = (ticks().now, (1_u64 << 32) - 75_000);
        assert_eq!(now, first + 900_000);
        let text = format!(
            "src=10.1.0.2 ttl: 63 last_seen: {} oldest_pkt: 2 {}, {}\n\
             src=fd01:0000:0000:0000:0000:0000:0000:0002 ttl: 0 last_seen: {now} oldest_pkt: 1 {}\n",
            now - 250,
            now - 500,
            now - 250,
            now + 9
        );
        let entries = parse(&text, ticks()).unwrap();
        assert_eq!((entries[0].hops, &entries[0].ages_ms), (63, &vec![2_000, 1_000]));
        // What was seen while the list was read.
        assert_eq!((entries[1].address, &entries[1].ages_ms), ("fd01::2".parse().unwrap(), &vec![0]));
        assert!(parse("src=10.1.0.2 ttl: 63\n", ticks()).is_err());
        assert!(parse("src=here ttl: 63 last_seen: 1 oldest_pkt: 1 1\n", ticks()).is_err());
    }

    #[test]
    fn a_list_that_is_not_there_is_unknown_and_not_empty() {
        for list in ["no-such-list-of-this-test", "../route", ""] {
            assert!(matches!(found(list), Fact::Unknown(_)), "{list}");
        }
    }

    proptest! {
        #[test]
        fn any_text_ends(text in "(src=[0-9.:a-f]{0,12} (ttl: [0-9]{0,5} )?last_seen: [0-9]{0,25}\n?){0,3}") {
            let lines = text.lines().count();
            assert!(parse(&text, ticks()).map_or(0, |entries| entries.len()) <= lines);
        }
    }
}
