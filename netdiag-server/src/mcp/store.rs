//! The last inquiries, by handle, so that evidence can be looked at after its answer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::ask::Inquiry;

/// Kept inquiries. Each holds one snapshot of the cluster, shared while nothing changed, and its readings.
const MAX_KEPT: usize = 32;

#[derive(Default)]
pub struct Store {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    next: u64,
    entries: VecDeque<Entry>,
}

struct Entry {
    handle: String,
    /// Who asked: nobody else gets it.
    user: String,
    inquiry: Arc<Inquiry>,
}

impl Store {
    /// Keeps an inquiry and forgets the oldest beyond the limit.
    pub fn keep(&self, user: &str, inquiry: Arc<Inquiry>) -> String {
        // A panic while the lock was held leaves a list that is still a list.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.next += 1;
        let handle = format!("answer-{}", kept.next);
        kept.entries.push_back(Entry { handle: handle.clone(), user: user.to_owned(), inquiry });
        while kept.entries.len() > MAX_KEPT {
            kept.entries.pop_front();
        }
        handle
    }

    pub fn get(&self, user: &str, handle: &str) -> Option<Arc<Inquiry>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = kept.entries.iter().find(|entry| entry.handle == handle && entry.user == user)?;
        Some(entry.inquiry.clone())
    }

    /// The caller's handles, newest first.
    pub fn handles(&self, user: &str) -> Vec<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.entries.iter().rev().filter(|entry| entry.user == user).map(|entry| entry.handle.clone()).collect()
    }
}
