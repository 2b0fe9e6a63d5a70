//! Queues to programs: which one a packet is given to (`nft_queue.c`, `xt_NFQUEUE.c`, Linux 6.18).

use super::{Result, Run};
use crate::forwarding::expression::{Queues, Verdict};
use crate::forwarding::fact::Fact;

/// So many queues are followed one by one; of more, the first stands for all.
pub(in crate::forwarding) const FOLLOWED_QUEUES: u16 = 16;

impl Run<'_> {
    /// `nft_queue_eval`, `nft_queue_sreg_eval`
    pub(in crate::forwarding) fn queue(&mut self, queues: Queues, bypass: bool) -> Result<Verdict> {
        self.queues = None;
        let number = match queues {
            // `NF_QUEUE_NR` keeps the lower half.
            Queues::Register(from) => match self.load_number(from) {
                Fact::Known(number) => u16::try_from(number & 0xffff).unwrap_or(0),
                Fact::Unknown(why) => return Err(self.unknown(format!("the number of the queue is not known: {why}"))),
            },
            Queues::Range { first, total: 0 | 1, .. } => first,
            Queues::Range { first, total, by_processor } => {
                let last = first.saturating_add(total - 1);
                self.queues = Some((first, last));
                self.one_of(first, last, by_processor)
            }
        };
        Ok(Verdict::Queue { number, bypass })
    }

    fn one_of(&mut self, first: u16, last: u16, by_processor: bool) -> u16 {
        let total = u32::from(last - first) + 1;
        if total > u32::from(FOLLOWED_QUEUES) {
            return first;
        }
        if by_processor {
            let question = |number: u16| format!("the processor of the packet has queue {number} of {first}-{last}");
            return (first..last).find(|number| self.decide(&question(*number))).unwrap_or(last);
        }
        // `nfqueue_hash`, whose key is a secret of the kernel.
        let drawn = self.draw(&format!("the hash of the queues {first}-{last}"), total);
        first.saturating_add(u16::try_from(drawn).unwrap_or(0))
    }
}
