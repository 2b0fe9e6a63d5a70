//! Whether larger packets are kept back, or were lost like others; and up to where they still come.

use std::net::IpAddr;

use netdiag_common::observation::series::ProbeFailure;

use super::asker::{Asker, Outcome};
use super::unreachable;

/// Below this chance that plain loss took all large packets we say that it did not.
const CHANCE: f64 = 1e-4;
/// Pairs of a packet that is too large and one that fits.
const FEWEST_PAIRS: u32 = 3;
const MOST_PAIRS: u32 = 20;
/// Hops that are looked at, and hops in a row that say nothing to small packets either.
const MOST_HOPS: u8 = 16;
const SILENT_HOPS: u8 = 3;

/// What lies between the size that fits and the next.
pub(super) enum Edge {
    /// The larger one got through, or somebody spoke: the search goes on.
    Moved,
    /// It vanishes, while smaller ones before and after it are answered.
    Hole,
    /// Too many of those that fit are lost too.
    Doubtful { lost_small: u32, sent_small: u32 },
}

/// Large and small ones in turn, until chance is no explanation.
pub(super) async fn confirm(asker: &mut Asker<'_>, fits: u16, lost: u16) -> Result<Edge, ProbeFailure> {
    for pair in 1..=MOST_PAIRS {
        match asker.ask(lost, None).await? {
            Outcome::Silent if !asker.sizes().fits(lost) => {}
            Outcome::Unreachable { from, error } => return Err(unreachable(from, error)),
            _ => return Ok(Edge::Moved),
        }
        let is_answered = asker.ask(fits, None).await? == Outcome::Answered;
        // The answer to the last large packet may have come while the small one's was awaited.
        if asker.sizes().fits(lost) {
            return Ok(Edge::Moved);
        }
        if is_answered && pair >= FEWEST_PAIRS && asker.sizes().chance_of_loss(fits, lost) < CHANCE {
            return Ok(Edge::Hole);
        }
    }
    let (sent_small, answered) = asker.sizes().up_to(fits);
    Ok(Edge::Doubtful { lost_small: sent_small.saturating_sub(answered), sent_small })
}

/// The farthest hop that large packets come to, by their TTL: routers look at it before they look at the size
/// (`ip_forward`, `ip6_forward`).
pub(super) async fn last_hop(asker: &mut Asker<'_>, fits: u16, lost: u16) -> Result<Option<IpAddr>, ProbeFailure> {
    let (mut last, mut silent) = (None, 0);
    for ttl in 1..=MOST_HOPS {
        match until_said(asker, lost, ttl).await? {
            Outcome::Expired { from } => {
                (last, silent) = (Some(from), 0);
                continue;
            }
            Outcome::Silent => {}
            _ => break,
        }
        match until_said(asker, fits, ttl).await? {
            Outcome::Silent if silent + 1 < SILENT_HOPS => silent += 1,
            // This hop hears small packets, and large ones do not come so far; or nothing is heard any more.
            _ => break,
        }
    }
    Ok(last)
}

async fn until_said(asker: &mut Asker<'_>, bytes: u16, ttl: u8) -> Result<Outcome, ProbeFailure> {
    for _ in 0..asker.tries() {
        let outcome = asker.ask(bytes, Some(ttl)).await?;
        if outcome != Outcome::Silent {
            return Ok(outcome);
        }
    }
    Ok(Outcome::Silent)
}
