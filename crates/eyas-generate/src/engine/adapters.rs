//! The adapters that an engine has beside its base.

use eyas_backend::Backend;
use eyas_model::{ActiveAdapter, LoraLayout};

use crate::{Error, Result};

/// Names an adapter of an engine; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(u32);

impl AdapterId {
    pub(super) fn number(self) -> u64 {
        u64::from(self.0)
    }

    pub(super) fn error(self, reason: &'static str) -> Error {
        Error::Adapter { id: self.0, reason }
    }
}

#[derive(Debug)]
enum Entry<'m, B: Backend> {
    Owned { layout: Box<LoraLayout>, params: B::Tensor },
    Shared { layout: &'m LoraLayout, params: &'m B::Tensor },
}

/// All adapters, by their numbers.
#[derive(Debug)]
pub(super) struct Adapters<'m, B: Backend>(Vec<Option<Entry<'m, B>>>);

impl<B: Backend> Default for Adapters<'_, B> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'m, B: Backend> Adapters<'m, B> {
    pub(super) fn add_owned(&mut self, layout: LoraLayout, params: B::Tensor) -> AdapterId {
        self.add(Entry::Owned { layout: Box::new(layout), params })
    }

    pub(super) fn add_shared(&mut self, layout: &'m LoraLayout, params: &'m B::Tensor) -> AdapterId {
        self.add(Entry::Shared { layout, params })
    }

    fn add(&mut self, entry: Entry<'m, B>) -> AdapterId {
        self.0.push(Some(entry));
        AdapterId(self.0.len() as u32 - 1)
    }

    pub(super) fn remove(&mut self, id: AdapterId) -> Result<()> {
        let entry = self.0.get_mut(id.0 as usize).and_then(Option::take);
        entry.map(drop).ok_or_else(|| id.error("is not loaded"))
    }

    pub(super) fn get(&self, id: AdapterId) -> Result<ActiveAdapter<'_, B>> {
        let (layout, params) = match self.0.get(id.0 as usize) {
            Some(Some(Entry::Owned { layout, params })) => (&**layout, params),
            Some(Some(Entry::Shared { layout, params })) => (*layout, *params),
            _ => return Err(id.error("is not loaded")),
        };
        Ok(ActiveAdapter { layout, params, dropout: None })
    }
}
