//! A bounded number of places, and a smaller bounded number for each who asks, so that who takes too many
//! costs only itself.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Clones share the places.
pub struct Places<K>(Arc<Shared<K>>);

struct Shared<K> {
    most: usize,
    most_each: usize,
    taken: Mutex<Taken<K>>,
}

struct Taken<K> {
    all: usize,
    each: HashMap<K, usize>,
}

/// Given back when dropped.
pub struct Taking<K: Eq + Hash> {
    places: Places<K>,
    who: K,
}

impl<K> Clone for Places<K> {
    fn clone(&self) -> Self {
        Places(self.0.clone())
    }
}

impl<K: Eq + Hash + Clone> Places<K> {
    /// `most` in all, `most_each` for one.
    pub fn new(most: usize, most_each: usize) -> Places<K> {
        Places(Arc::new(Shared {
            most,
            most_each,
            taken: Mutex::new(Taken {
                all: 0,
                each: HashMap::new(),
            }),
        }))
    }

    /// A place for `who`, if there is one.
    pub fn take(&self, who: K) -> Option<Taking<K>> {
        let mut taken = self.0.taken.lock();
        let each = taken.each.get(&who).copied().unwrap_or_default();
        if taken.all >= self.0.most || each >= self.0.most_each {
            return None;
        }
        taken.all += 1;
        taken.each.insert(who.clone(), each + 1);
        drop(taken);
        Some(Taking {
            places: self.clone(),
            who,
        })
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.0.taken.lock().all
    }

    /// Whether nobody gets one any more.
    pub fn is_full(&self) -> bool {
        self.taken() >= self.0.most
    }
}

impl<K: Eq + Hash> Drop for Taking<K> {
    fn drop(&mut self) {
        let mut taken = self.places.0.taken.lock();
        taken.all -= 1;
        // Nothing is kept of who has none.
        if let Some(each) = taken.each.get_mut(&self.who) {
            *each -= 1;
            if *each == 0 {
                taken.each.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_too_many_leaves_the_others_theirs() {
        let places = Places::new(3, 2);
        let greedy: Vec<_> = (0..5).filter_map(|_| places.take("a")).collect();
        assert_eq!(greedy.len(), 2);
        let other = places.take("b").expect("one is left");
        assert!(places.is_full() && places.take("c").is_none());
        drop(greedy);
        assert_eq!(places.taken(), 1);
        assert!(places.take("a").is_some());
        drop(other);
        assert!(
            places.0.taken.lock().each.is_empty(),
            "nothing is remembered"
        );
    }
}
