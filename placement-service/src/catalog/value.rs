//! A value as it is kept, and what it says: JSON is read once, however often it is asked for.

use serde::de::DeserializeOwned;
use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

/// Bytes that never change. Cheap to clone; clones share what was read from them.
#[derive(Clone)]
pub struct Value(Arc<Inner>);

struct Inner {
    bytes: Vec<u8>,
    read: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Value {
    /// The bytes as JSON. Remembered as the first type that they were read as.
    pub fn read<T: DeserializeOwned + Send + Sync + 'static>(
        &self,
    ) -> Result<Arc<T>, serde_json::Error> {
        let known = self.0.read.get().cloned();
        if let Some(Ok(known)) = known.map(|known| known.downcast::<T>()) {
            return Ok(known);
        }
        let read = Arc::new(serde_json::from_slice::<T>(&self.0.bytes)?);
        // Where somebody else was faster, both have read the same.
        let _ = self.0.read.set(read.clone());
        Ok(read)
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Value(Arc::new(Inner {
            bytes,
            read: OnceLock::new(),
        }))
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl Eq for Value {}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(self).fmt(f)
    }
}
