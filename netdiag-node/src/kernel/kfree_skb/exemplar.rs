//! A few whole packets of each kind of drop, newest first, in bounded memory.

use netdiag_common::record::kfree_skb::{Exemplar, STACK_DEPTH};

use crate::kernel::newest::Newest;

/// Packets kept of one kind: enough to see a pattern in addresses and ports. 8 of each of 128 kinds are 213 KiB.
const PER_KIND: usize = 8;

/// Namespace, location and reason.
type Kind = (u64, u64, u32);

#[derive(Debug)]
pub(super) struct Exemplars(Newest<Kind, Exemplar>);

impl Default for Exemplars {
    fn default() -> Self {
        Self(Newest::new(PER_KIND, |exemplar| exemplar.at_ns))
    }
}

impl Exemplars {
    pub(super) fn add(&mut self, exemplar: Exemplar) {
        self.0.add((exemplar.netns, exemplar.location, exemplar.reason), exemplar);
    }

    pub(super) fn forget_before(&mut self, ns: u64) {
        self.0.forget_before(ns);
    }

    /// Namespaces that have exemplars.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = u64> {
        self.0.kinds().map(|((netns, _, _), _)| *netns)
    }

    /// At most `limit` of those that `wanted` accepts, newest first: one of each kind before a second of any.
    pub(super) fn pick(&self, limit: usize, wanted: impl Fn(&Exemplar) -> bool) -> Vec<&Exemplar> {
        let mut ranked: Vec<(usize, &Exemplar)> = self
            .0
            .kinds()
            .flat_map(|(_, of)| of.iter().rev().filter(|exemplar| wanted(exemplar)).enumerate())
            .collect();
        ranked.sort_by_key(|(rank, exemplar)| (*rank, std::cmp::Reverse(exemplar.at_ns)));
        let mut picked: Vec<&Exemplar> = ranked.into_iter().take(limit).map(|(_, exemplar)| exemplar).collect();
        picked.sort_by_key(|exemplar| std::cmp::Reverse(exemplar.at_ns));
        picked
    }
}

/// The record in one entry of the ring; none when it is of another size.
pub(super) fn decode(bytes: &[u8]) -> Option<Exemplar> {
    if bytes.len() < size_of::<Exemplar>() {
        return None;
    }
    // SAFETY: long enough, and every bit pattern is an `Exemplar`, which holds integers only.
    Some(unsafe { bytes.as_ptr().cast::<Exemplar>().read_unaligned() })
}

/// The return addresses from the one that freed the packet on. Before it lie our own program and the tracepoint, in a
/// number that differs between kernels.
pub(super) fn frames(exemplar: &Exemplar) -> &[u64] {
    let count = usize::try_from(exemplar.frames).unwrap_or(0).min(STACK_DEPTH);
    let stack = &exemplar.stack[..count];
    let first = stack.iter().position(|address| *address == exemplar.location).unwrap_or(0);
    &stack[first..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::newest::KINDS;

    fn exemplar(netns: u64, at_ns: u64) -> Exemplar {
        // SAFETY: integers only.
        let mut exemplar: Exemplar = unsafe { std::mem::zeroed() };
        (exemplar.netns, exemplar.at_ns) = (netns, at_ns);
        exemplar
    }

    #[test]
    fn a_loud_kind_does_not_push_out_a_quiet_one() {
        let mut exemplars = Exemplars::default();
        exemplars.add(exemplar(7, 1));
        (2..1000).for_each(|at| exemplars.add(exemplar(8, at)));
        let picked: Vec<u64> = exemplars.pick(2, |_| true).iter().map(|picked| picked.at_ns).collect();
        assert_eq!(picked, [999, 1]);
        assert_eq!(exemplars.pick(64, |_| true).len(), 1 + PER_KIND);
    }

    #[test]
    fn kinds_are_bounded_and_the_stalest_goes() {
        let mut exemplars = Exemplars::default();
        (0..1000).for_each(|n| exemplars.add(exemplar(n, n)));
        assert_eq!(exemplars.0.kinds().count(), KINDS);
        assert!(exemplars.pick(64, |picked| picked.netns < 1000 - KINDS as u64).is_empty());
        exemplars.forget_before(990);
        assert_eq!(exemplars.pick(64, |_| true).len(), 10);
    }

    #[test]
    fn an_entry_of_another_size_is_no_record() {
        assert!(decode(&[0; 40]).is_none());
        let mut wild = decode(&[0xff; size_of::<Exemplar>()]).unwrap();
        assert!(frames(&wild).is_empty(), "a negative count is an error code");
        wild.frames = i32::MAX;
        assert_eq!(frames(&wild).len(), STACK_DEPTH);
        (wild.frames, wild.location) = (4, 0x30);
        wild.stack[..4].copy_from_slice(&[0x10, 0x20, 0x30, 0x40]);
        assert_eq!(frames(&wild), [0x30, 0x40]);
    }
}
