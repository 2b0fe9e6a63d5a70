//! The ports of a bridge that a packet passes between (`xt_physdev.c`).

use super::{Blob, Matched};
use crate::forwarding::machine::Run;

/// `IFNAMSIZ`
const NAME_BYTES: usize = 16;

/// `XT_PHYSDEV_OP_*`
mod flag {
    pub const IN: u8 = 1;
    pub const OUT: u8 = 2;
    pub const BRIDGED: u8 = 4;
    pub const IS_IN: u8 = 8;
    pub const IS_OUT: u8 = 16;
    pub const ALL: [u8; 5] = [IN, OUT, BRIDGED, IS_IN, IS_OUT];
}

impl Run<'_> {
    /// `physdev_mt`: of a packet that came by no bridge with `br_netfilter`, nothing holds but what is asked the other way round. Of
    /// one that came by a bridge and is routed, the first port is known (6.2 and its like in stable branches forgot it for a while:
    /// "br_netfilter: fix recent physdev match breakage").
    pub(super) fn physical_devices(&mut self, blob: Blob<'_>) -> Option<Matched> {
        let (inverted, wanted) = (blob.byte(64)?, blob.byte(65)?);
        let is_asked = |flag: u8| wanted & flag != 0;
        let is_meant = |flag: u8| inverted & flag == 0;
        let Some(between) = &self.between else {
            let fails = flag::ALL.into_iter().any(|flag| is_asked(flag) && is_meant(flag));
            return Some(Matched::from(!fails));
        };
        let leaves = !between.outputs.is_empty();
        for (flag, holds) in [(flag::BRIDGED, leaves), (flag::IS_IN, true), (flag::IS_OUT, leaves)] {
            if is_asked(flag) && holds != is_meant(flag) {
                return Some(Matched::No);
            }
        }
        if is_asked(flag::IN) && Name::at(blob, 0)?.fits(between.input) != is_meant(flag::IN) {
            return Some(Matched::No);
        }
        if !is_asked(flag::OUT) {
            return Some(Matched::Yes);
        }
        let name = Name::at(blob, 2 * NAME_BYTES)?;
        Some(Matched::from(leaves && self.leaves_by(&name) == is_meant(flag::OUT)))
    }

    /// Which port it is, the bridge's table decides, which changes by itself: where it matters, both ways are followed.
    fn leaves_by(&mut self, name: &Name) -> bool {
        let Some(between) = &self.between else { return false };
        let fitting = between.outputs.iter().filter(|output| name.fits(output)).count();
        if fitting == 0 || fitting == between.outputs.len() {
            return fitting != 0;
        }
        let holds = self.decide(&format!("the bridge hands the packet to {}", name.words()));
        if let Some(between) = &mut self.between {
            between.outputs.retain(|output| name.fits(output) == holds);
        }
        holds
    }
}

/// A name that a rule wants, and which of its bytes count.
struct Name {
    wanted: [u8; NAME_BYTES],
    mask: [u8; NAME_BYTES],
}

impl Name {
    fn at(blob: Blob<'_>, at: usize) -> Option<Self> {
        Some(Self { wanted: blob.array(at)?, mask: blob.array(at + NAME_BYTES)? })
    }

    /// `ifname_compare_aligned`
    fn fits(&self, name: &str) -> bool {
        let own = name.bytes().chain(std::iter::repeat(0));
        self.wanted.iter().zip(self.mask).zip(own).all(|((wanted, mask), own)| (wanted ^ own) & mask == 0)
    }

    /// `veth1`, or `veth+` where only the beginning counts.
    fn words(&self) -> String {
        let name: Vec<u8> = self.wanted.iter().copied().take_while(|byte| *byte != 0).collect();
        let is_whole = self.mask.get(name.len()).is_none_or(|mask| *mask != 0);
        format!("{}{}", String::from_utf8_lossy(&name), if is_whole { "" } else { "+" })
    }
}
