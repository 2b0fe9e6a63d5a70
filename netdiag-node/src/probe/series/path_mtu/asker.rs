//! One packet of one size at a time, and what is said to it. Answers that come late still count for the size they are about.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netdiag_common::observation::series::{IcmpError, ProbeFailure, ProbeStage};
use tokio::time::timeout_at;

use super::super::context::{Context, local, of_errno};
use super::super::flow::{Answer, Flow, Said};
use super::super::icmp_error::{is_port_unreachable, is_time_exceeded, is_too_big};
use super::sizes::Sizes;

/// How long an answer may take at most.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// And at least, once the round-trip time is known: machines are busy.
const SHORTEST_WAIT: Duration = Duration::from_millis(50);
/// Round-trip times after which nothing is expected any more.
const WAIT_RTTS: u32 = 8;
/// Sizes of a binary search among all packets that are lost, with those that confirm it.
const LOST_SIZES: u32 = 20;

/// Asks, and keeps what became of each size.
pub(super) struct Asker<'a> {
    context: &'a Context,
    flow: Flow,
    sizes: Sizes,
    tries: u8,
    wait: Duration,
    /// Of the last packet that was sent.
    number: u16,
    /// Size of each packet, and whether its TTL was to end on the way.
    numbers: HashMap<u16, (u16, bool)>,
}

/// What one packet came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The target answered.
    Answered,
    TooBig,
    /// This node's device does not take it.
    Local,
    /// Its TTL ended at this hop.
    Expired {
        from: IpAddr,
    },
    /// Somebody said that it gets no farther, for another reason than its size.
    Unreachable {
        from: IpAddr,
        error: IcmpError,
    },
    Silent,
}

impl<'a> Asker<'a> {
    pub(super) fn new(context: &'a Context, flow: Flow, tries: u8, within: Duration) -> Self {
        let wait = (within / (LOST_SIZES * u32::from(tries))).clamp(Duration::from_millis(1), LONGEST_WAIT);
        Self { context, flow, sizes: Sizes::default(), tries, wait, number: 0, numbers: HashMap::new() }
    }

    pub(super) fn tries(&self) -> u8 {
        self.tries
    }

    pub(super) fn smallest(&self) -> u16 {
        self.flow.smallest()
    }

    pub(super) fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Sends one packet and waits for what is said to it. With a TTL it does not count for its size.
    pub(super) async fn ask(&mut self, bytes: u16, ttl: Option<u8>) -> Result<Outcome, ProbeFailure> {
        self.number = self.number.wrapping_add(1);
        let number = self.number;
        self.context.spend(1, bytes.into()).await;
        let begun = Instant::now();
        match self.flow.send(number, bytes, ttl) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                self.sizes.not_taken(bytes);
                return Ok(Outcome::Local);
            }
            Err(error) => return Err(of_errno(ProbeStage::Send, &error)),
            Ok(()) => {}
        }
        self.numbers.insert(number, (bytes, ttl.is_some()));
        if ttl.is_none() {
            self.sizes.sent(bytes);
        }
        while let Ok(answer) = timeout_at((begun + self.wait).into(), self.flow.next()).await {
            let answer = answer.map_err(|error| local(ProbeStage::Answer, &error))?;
            let at = answer.at;
            // A server that is no echo answers the packet that is on its way.
            let about = answer.number.unwrap_or(number);
            let outcome = self.take(about, answer);
            if about == number {
                let rtt = at.saturating_duration_since(begun);
                self.wait = self.wait.min((rtt * WAIT_RTTS).max(SHORTEST_WAIT));
                return Ok(outcome);
            }
        }
        Ok(Outcome::Silent)
    }

    fn take(&mut self, number: u16, answer: Answer) -> Outcome {
        let known = self.numbers.get(&number).copied();
        let outcome = outcome(&answer, known.is_some_and(|(_, is_limited)| is_limited));
        let Some((bytes, is_limited)) = known else { return outcome };
        match (&outcome, answer.said) {
            _ if is_limited => {}
            (Outcome::Answered, _) => self.sizes.answered(bytes),
            (Outcome::TooBig, Said::Error(error)) => self.sizes.too_big(bytes, answer.from, error),
            _ => {}
        }
        outcome
    }
}

/// A TTL that ended although it was not to is a routing loop: nothing gets through there.
fn outcome(answer: &Answer, is_limited: bool) -> Outcome {
    let Said::Error(error) = &answer.said else { return Outcome::Answered };
    let (is_v6, from) = (answer.from.is_ipv6(), answer.from);
    if is_too_big(is_v6, error.kind, error.code) {
        Outcome::TooBig
    } else if is_limited && is_time_exceeded(is_v6, error.kind, error.code) {
        Outcome::Expired { from }
    } else if is_port_unreachable(is_v6, error.kind, error.code) {
        Outcome::Answered
    } else {
        Outcome::Unreachable { from, error: error.clone() }
    }
}
