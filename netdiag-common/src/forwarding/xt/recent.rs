//! Whether an address was seen of late (`recent_mt`, `xt_recent.c`, Linux 6.18), by the list as it is.
//!
//! A list has the mask of the rule that made it, which the kernel does not show: that of the rule in question is taken
//! for it. `iptables` gives all rules the same one unless told otherwise.

use std::net::IpAddr;

use super::{Blob, Matched};
use crate::forwarding::fact::Fact;
use crate::forwarding::machine::{Result, Run};
use crate::forwarding::packet::octets;
use crate::forwarding::recent::{RecentChange, RecentEntry};

/// `XT_RECENT_*`
const CHECK: u8 = 1;
const SET: u8 = 2;
const UPDATE: u8 = 4;
const REMOVE: u8 = 8;
const HOPS: u8 = 16;
const REAP: u8 = 32;

/// By how much a packet's age may be wrong: it is told in ticks of a clock that starts up to a second after the one that
/// is read, and the packet in question comes when the list was read already.
const SLACK_MS: u64 = 2_000;

/// `struct xt_recent_mtinfo`, `struct xt_recent_mtinfo_v1`
struct Question {
    seconds: u32,
    hits: u32,
    flags: u8,
    inverted: bool,
    list: String,
    address: IpAddr,
}

impl Run<'_> {
    pub(super) fn recent_match(&mut self, revision: u32, blob: Blob<'_>) -> Result<Option<Matched>> {
        let Some(question) = self.question(revision, blob) else { return Ok(None) };
        let hops = self.hops_before_forwarding();
        let (flags, inverted) = (question.flags, question.inverted);
        if flags & SET != 0 {
            self.remember(&question, RecentChange::Seen(hops.known().copied()));
            return Ok(Some(Matched::from(!inverted)));
        }
        let hops = if flags & HOPS != 0 { hops } else { Fact::Known(0) };
        let mut is_reaped = false;
        let holds = match self.entry(&question, hops)? {
            Fact::Known(entry) if flags & REMOVE != 0 => entry.is_some(),
            Fact::Known(None) => return Ok(Some(Matched::from(inverted))),
            Fact::Known(Some(entry)) => {
                is_reaped = flags & REAP != 0 && question.is_stale(&entry);
                let why = "its packets came about as long ago as the rule's time is";
                question.is_met(&entry).unwrap_or_else(|| self.decide_afresh(&question.words(why)))
            }
            Fact::Unknown(why) => self.decide_afresh(&question.words(&why)),
        };
        if flags & REMOVE != 0 && holds {
            self.remember(&question, RecentChange::Removed);
        } else if flags & UPDATE != 0 && holds != inverted {
            let hops = self.hops_before_forwarding().known().copied();
            self.remember(&question, RecentChange::Seen(hops));
        } else if is_reaped {
            self.remember(&question, RecentChange::Reaped);
        }
        Ok(Some(Matched::from(holds != inverted)))
    }

    fn question(&self, revision: u32, blob: Blob<'_>) -> Option<Question> {
        const BY_DESTINATION: u8 = 1;
        let own = if blob.byte(210)? == BY_DESTINATION { self.packet.destination() } else { self.packet.source() };
        let mask = match revision {
            0 => [0xff; 16],
            1 => blob.array::<16>(212)?,
            _ => return None,
        };
        let (seconds, hits, flags) = (blob.u32(0)?, blob.u32(4)?, blob.byte(8)?);
        if flags & (CHECK | SET | UPDATE | REMOVE) == 0 {
            return None;
        }
        let (inverted, list) = (blob.byte(9)? != 0, blob.text(10, 200)?);
        Some(Question { seconds, hits, flags, inverted, list, address: network_of(own, mask) })
    }

    fn remember(&mut self, question: &Question, change: RecentChange) {
        self.recent.push((question.list.clone(), question.address, change));
    }

    /// `ttl` of `recent_mt`: routers have spent one where the packet is about to leave, senders have not.
    fn hops_before_forwarding(&self) -> Fact<u8> {
        let own = self.packet.hops_left();
        match &self.packet.socket {
            _ if self.output.is_none() => Fact::Known(own),
            Fact::Known(None) => Fact::Known(own.wrapping_add(1)),
            Fact::Known(Some(_)) => Fact::Known(own),
            Fact::Unknown(why) => Fact::Unknown(why.clone()),
        }
    }

    /// What the list has of the address, with what this packet changed. `hops` are 0 where they do not matter.
    fn entry(&self, question: &Question, hops: Fact<u8>) -> Result<Fact<Option<RecentEntry>>> {
        let hops = match hops {
            Fact::Known(hops) => hops,
            Fact::Unknown(why) => return Ok(Fact::Unknown(why)),
        };
        let mut entry = match self.state.recent(&question.list)? {
            Fact::Known(entries) => entries.iter().find(|entry| entry.address == question.address).cloned(),
            Fact::Unknown(why) => return Ok(Fact::Unknown(why.clone())),
        };
        let own = |(list, address, _): &&(String, IpAddr, RecentChange)| {
            *list == question.list && *address == question.address
        };
        for (.., change) in self.recent.iter().filter(own) {
            match *change {
                RecentChange::Seen(now) => {
                    let address = question.address;
                    let seen = entry.get_or_insert(RecentEntry { address, hops: 0, ages_ms: Vec::new() });
                    seen.ages_ms.push(0);
                    // 0 stands for any.
                    seen.hops = now.unwrap_or(0);
                }
                RecentChange::Removed => entry = None,
                RecentChange::Reaped => {
                    return Ok(Fact::Unknown("a rule with --reap may have removed it from the list".into()));
                }
            }
        }
        Ok(Fact::Known(entry.filter(|entry| hops == 0 || entry.hops == 0 || entry.hops == hops)))
    }
}

impl Question {
    /// None where an age is so close to the rule's time that it may lie on either side.
    fn is_met(&self, entry: &RecentEntry) -> Option<bool> {
        let needed = usize::try_from(self.hits.max(1)).unwrap_or(usize::MAX);
        if self.seconds == 0 {
            return Some(entry.ages_ms.len() >= needed);
        }
        let limit = u64::from(self.seconds) * 1_000;
        let within = |limit: u64| entry.ages_ms.iter().filter(|age| **age <= limit).count();
        if within(limit.saturating_sub(SLACK_MS)) >= needed {
            Some(true)
        } else if within(limit + SLACK_MS) < needed {
            Some(false)
        } else {
            None
        }
    }

    /// `recent_entry_reap` may remove it: its last packet came before the rule's time.
    fn is_stale(&self, entry: &RecentEntry) -> bool {
        let limit = u64::from(self.seconds) * 1_000;
        entry.ages_ms.iter().all(|age| age + SLACK_MS > limit)
    }

    fn words(&self, why: &str) -> String {
        let Self { list, address, seconds, hits, .. } = self;
        let within = if *seconds > 0 { format!(" in the last {seconds} s") } else { String::new() };
        let times = if *hits > 1 { format!(" {hits} times") } else { String::new() };
        format!("list {list} of match recent has {address}{times}{within}, although {why}")
    }
}

fn network_of(address: IpAddr, mask: [u8; 16]) -> IpAddr {
    let mut masked = [0; 16];
    for (place, (byte, mask)) in masked.iter_mut().zip(octets(address).iter().zip(mask)) {
        *place = byte & mask;
    }
    match address {
        IpAddr::V4(_) => IpAddr::from([masked[0], masked[1], masked[2], masked[3]]),
        IpAddr::V6(_) => IpAddr::from(masked),
    }
}
