//! What became of each size. Pure: which size to ask for next, and what the answers show.

use std::net::IpAddr;

use netdiag_common::observation::series::IcmpError;
use netdiag_common::observation::series::path::SizeStep;

/// All sizes so far, in the order in which they were first asked for.
#[derive(Default)]
pub(super) struct Sizes {
    sizes: Vec<Size>,
}

#[derive(Default)]
struct Size {
    bytes: u16,
    sent: u32,
    answered: u32,
    /// Who said that it is too big.
    too_big: Option<(IpAddr, IcmpError)>,
    /// The device did not take it.
    is_local: bool,
}

impl Sizes {
    pub(super) fn sent(&mut self, bytes: u16) {
        self.of(bytes).sent += 1;
    }

    pub(super) fn answered(&mut self, bytes: u16) {
        self.of(bytes).answered += 1;
    }

    pub(super) fn too_big(&mut self, bytes: u16, from: IpAddr, error: IcmpError) {
        self.of(bytes).too_big = Some((from, error));
    }

    pub(super) fn not_taken(&mut self, bytes: u16) {
        self.of(bytes).is_local = true;
    }

    fn of(&mut self, bytes: u16) -> &mut Size {
        let at = self.sizes.iter().position(|size| size.bytes == bytes).unwrap_or_else(|| {
            self.sizes.push(Size { bytes, ..Size::default() });
            self.sizes.len() - 1
        });
        &mut self.sizes[at]
    }

    pub(super) fn fits(&self, bytes: u16) -> bool {
        self.sizes.iter().any(|size| size.bytes == bytes && size.answered > 0)
    }

    pub(super) fn largest_that_fits(&self) -> Option<u16> {
        self.sizes.iter().filter(|size| size.answered > 0).map(|size| size.bytes).max()
    }

    /// The smallest above all that fit that did not.
    fn smallest_that_does_not(&self) -> Option<&Size> {
        let fits = self.largest_that_fits().unwrap_or(0);
        self.sizes.iter().filter(|size| size.bytes > fits).min_by_key(|size| size.bytes)
    }

    /// The size to ask for next, up to `top`. None: nothing lies between what fits and what does not.
    pub(super) fn next(&self, top: u16) -> Option<u16> {
        let fits = self.largest_that_fits()?;
        let above = self.smallest_that_does_not().map_or(top.saturating_add(1), |size| size.bytes);
        if above <= fits + 1 {
            return None;
        }
        let named = self.sizes.iter().rev().filter_map(|size| size.too_big.as_ref()?.1.mtu);
        for mtu in named.filter_map(|mtu| u16::try_from(mtu).ok()) {
            if fits < mtu && mtu < above {
                return Some(mtu);
            }
            // What was named fits: the next byte shows whether it is the limit.
            if mtu == fits {
                return Some(fits + 1);
            }
        }
        Some(fits + (above - fits) / 2)
    }

    /// What fits, and the next byte that was lost without a word. None: all fit up to `top`, or somebody named the limit.
    pub(super) fn silent_edge(&self, top: u16) -> Option<(u16, u16)> {
        let fits = self.largest_that_fits()?;
        let lost = self.smallest_that_does_not()?;
        let is_named = self.said().is_some_and(|(_, error)| error.mtu == Some(fits.into()));
        (fits < top && lost.too_big.is_none() && !lost.is_local && !is_named).then_some((fits, lost.bytes))
    }

    /// Who said "too big" of the smallest packet.
    pub(super) fn said(&self) -> Option<&(IpAddr, IcmpError)> {
        self.sizes.iter().filter(|size| size.too_big.is_some()).min_by_key(|size| size.bytes)?.too_big.as_ref()
    }

    /// Sent and answered, of packets up to `bytes`.
    pub(super) fn up_to(&self, bytes: u16) -> (u32, u32) {
        let small = self.sizes.iter().filter(|size| size.bytes <= bytes);
        small.fold((0, 0), |(sent, answered), size| (sent + size.sent, answered + size.answered))
    }

    /// How probable it is that all packets of `lost` bytes were lost as those up to `fits` are: by chance, at the rate that
    /// those show (Laplace's rule: one more sent and lost, one more sent and answered).
    pub(super) fn chance_of_loss(&self, fits: u16, lost: u16) -> f64 {
        let (sent, answered) = self.up_to(fits);
        let rate = f64::from(sent.saturating_sub(answered) + 1) / f64::from(sent + 2);
        let times = self.sizes.iter().find(|size| size.bytes == lost).map_or(0, |size| size.sent);
        rate.powi(i32::try_from(times).unwrap_or(i32::MAX))
    }

    pub(super) fn steps(&self, device_mtu: Option<u32>) -> Vec<SizeStep> {
        let step = |size: &Size| SizeStep {
            bytes: size.bytes.into(),
            sent: size.sent,
            answered: size.answered,
            words: size.words(device_mtu),
        };
        self.sizes.iter().map(step).collect()
    }
}

impl Size {
    fn words(&self, device_mtu: Option<u32>) -> String {
        if self.answered > 0 {
            return "answered".to_owned();
        }
        if self.is_local {
            let device = device_mtu.map_or_else(String::new, |mtu| format!(" (device MTU {mtu})"));
            return format!("local: message too long{device}");
        }
        match &self.too_big {
            None => "no answer".to_owned(),
            Some((from, IcmpError { mtu: Some(mtu), .. })) => format!("too big ({from} says {mtu})"),
            Some((from, _)) => format!("too big ({from} names no MTU)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::icmp_error::icmp_error;
    use super::*;

    const TOP: u16 = 1_500;
    const SMALLEST: u16 = 38;

    fn named(mtu: u32) -> (IpAddr, IcmpError) {
        ("10.0.0.1".parse().unwrap(), icmp_error(false, 3, 4, mtu))
    }

    /// Asks until nothing is left, on a path that takes `fits` bytes and whose router says `says` of larger ones.
    fn search(fits: u16, says: Option<u32>) -> Sizes {
        let mut sizes = Sizes::default();
        let mut next = Some(TOP);
        for _ in 0..40 {
            let Some(bytes) = next else { return sizes };
            sizes.sent(bytes);
            if bytes <= fits {
                sizes.answered(bytes);
            } else if let Some(mtu) = says {
                let (from, error) = named(mtu);
                sizes.too_big(bytes, from, error);
            }
            next = if sizes.largest_that_fits().is_none() { Some(SMALLEST) } else { sizes.next(TOP) };
        }
        panic!("does not end for {fits}, {says:?}");
    }

    #[test]
    fn every_limit_is_found_to_the_byte_whatever_is_said() {
        for fits in SMALLEST..=TOP {
            for says in [None, Some(0), Some(u32::from(fits)), Some(1), Some(1_499), Some(1_280)] {
                assert_eq!(search(fits, says).largest_that_fits(), Some(fits), "{says:?}");
            }
        }
    }

    #[test]
    fn named_limit_takes_four_packets() {
        let sizes = search(1_400, Some(1_400));
        let asked: Vec<u32> = sizes.steps(None).iter().map(|step| step.bytes).collect();
        assert_eq!(asked, [1_500, 38, 1_400, 1_401]);
        assert_eq!(sizes.silent_edge(TOP), None);
        assert_eq!(sizes.steps(None)[0].words, "too big (10.0.0.1 says 1400)");
    }

    #[test]
    fn only_silence_above_what_fits_can_be_a_black_hole() {
        assert_eq!(search(1_400, None).silent_edge(TOP), Some((1_400, 1_401)));
        assert_eq!(search(TOP, None).silent_edge(TOP), None);
        // A router named 1450, and behind it 1400 is the end without a word.
        let mut both = search(1_400, None);
        let (from, error) = named(1_450);
        both.too_big(1_500, from, error);
        assert_eq!(both.silent_edge(TOP), Some((1_400, 1_401)));
    }

    #[test]
    fn late_answer_opens_the_search_again() {
        let mut sizes = Sizes::default();
        for bytes in [TOP, SMALLEST, 769] {
            sizes.sent(bytes);
        }
        sizes.answered(SMALLEST);
        assert_eq!(sizes.next(TOP), Some(403), "below what was lost");
        sizes.answered(769);
        assert_eq!(sizes.next(TOP), Some(1_134), "between what fits now and what was lost before it");
    }

    #[test]
    fn loss_of_small_packets_weakens_the_loss_of_large_ones() {
        let mut clean = Sizes::default();
        let mut lossy = Sizes::default();
        for n in 0..10 {
            for sizes in [&mut clean, &mut lossy] {
                sizes.sent(1_400);
                sizes.sent(1_401);
            }
            clean.answered(1_400);
            if n % 2 == 0 {
                lossy.answered(1_400);
            }
        }
        assert!(clean.chance_of_loss(1_400, 1_401) < 1e-9);
        assert!(lossy.chance_of_loss(1_400, 1_401) > 1e-4);
    }
}
