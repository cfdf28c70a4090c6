//! One map in the kernel, by kind of map: each knows its name, for messages.

use std::{io, ops::ControlFlow, os::fd::AsFd as _};

use aya::{
    Pod,
    maps::{Array, HashMap, IterableMap, LpmTrie, Map, MapData, MapError as AyaError, lpm_trie::Key},
};

use super::{MapError, Operation, Page};
use crate::loader::{LoaderError, syscall};

/// A hash map with its name.
#[derive(Debug)]
pub(crate) struct HashTable<K, V> {
    map: HashMap<MapData, K, V>,
    name: &'static str,
}

impl<K: Pod, V: Pod> HashTable<K, V> {
    pub(crate) fn open(
        open: &mut impl FnMut(&'static str) -> Result<Map, LoaderError>,
        name: &'static str,
    ) -> Result<Self, LoaderError> {
        let map = HashMap::try_from(open(name)?).map_err(|source| LoaderError::Map { map: name, source })?;
        Ok(Self { map, name })
    }

    /// How many elements it can hold.
    pub(crate) fn capacity(&self) -> Result<u32, LoaderError> {
        let info = self.map.map().info().map_err(|source| LoaderError::Map { map: self.name, source })?;
        Ok(info.max_entries())
    }

    pub(crate) fn read_all(&self) -> Result<Vec<(K, V)>, MapError> {
        syscall::read_all(self.map.map().fd().as_fd(), usize::MAX, |_| true).map_err(|source| MapError {
            map: self.name,
            operation: Operation::Read,
            source,
        })
    }

    /// Reads about this many elements, from a place on that an earlier page named, else the first.
    pub(super) fn read_some(&self, from: Option<u32>, about: usize) -> Result<Page<K, V>, MapError> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let next = syscall::read_some(self.map.map().fd().as_fd(), from, about, &mut keys, &mut values);
        let next = next.map_err(|source| MapError { map: self.name, operation: Operation::Read, source })?;
        Ok((keys.into_iter().zip(values).collect(), next))
    }

    /// Shows every element, thousands at once, until `see` fails.
    pub(super) fn visit<E: From<MapError>>(&self, mut see: impl FnMut(&[K], &[V]) -> Result<(), E>) -> Result<(), E> {
        let visited = syscall::visit(self.map.map().fd().as_fd(), usize::MAX, |keys: &[K], values: &[V]| {
            see(keys, values).map_or_else(ControlFlow::Break, ControlFlow::Continue)
        });
        match visited.map_err(|source| MapError { map: self.name, operation: Operation::Read, source })? {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(error) => Err(error),
        }
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        match self.map.get(key, 0).map_err(|error| failed(self.name, Operation::Read, error)) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn set(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        self.map.insert(key, value, 0).map_err(|error| failed(self.name, Operation::Write, error))
    }

    pub(super) fn remove(&mut self, key: &K) -> Result<(), MapError> {
        match self.map.remove(key).map_err(|error| failed(self.name, Operation::Remove, error)) {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// An array with its name.
pub(super) struct ArrayMap<V: Pod> {
    pub(super) map: Array<MapData, V>,
    name: &'static str,
}

impl<V: Pod> std::fmt::Debug for ArrayMap<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArrayMap").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<V: Pod> ArrayMap<V> {
    pub(super) fn open(
        open: &mut impl FnMut(&'static str) -> Result<Map, LoaderError>,
        name: &'static str,
    ) -> Result<Self, LoaderError> {
        let map = Array::try_from(open(name)?).map_err(|source| LoaderError::Map { map: name, source })?;
        Ok(Self { map, name })
    }

    pub(super) fn get(&self, index: u32) -> Result<V, MapError> {
        self.map.get(&index, 0).map_err(|error| failed(self.name, Operation::Read, error))
    }

    pub(super) fn set(&mut self, index: u32, value: &V) -> Result<(), MapError> {
        self.map.set(index, value, 0).map_err(|error| failed(self.name, Operation::Write, error))
    }

    /// Those of the first `count` elements that are to `keep`, with their indices.
    pub(super) fn read(&self, count: u32, keep: impl Fn(&V) -> bool) -> Result<Vec<(u32, V)>, MapError> {
        syscall::read_all(self.map.map().fd().as_fd(), count as usize, keep).map_err(|source| MapError {
            map: self.name,
            operation: Operation::Read,
            source,
        })
    }

    /// Reads consecutive elements: fewer where the table ends.
    pub(super) fn read_range(&self, first: u32, count: u32) -> Result<Vec<V>, MapError> {
        let count = count.min(self.map.len().saturating_sub(first));
        let (mut indices, mut values) = (Vec::<u32>::new(), Vec::new());
        if count == 0 {
            return Ok(values);
        }
        // An array names its place by the element before.
        let from = first.checked_sub(1);
        syscall::read_some(self.map.map().fd().as_fd(), from, count as usize, &mut indices, &mut values)
            .map_err(|source| MapError { map: self.name, operation: Operation::Read, source })?;
        Ok(values)
    }

    /// Writes consecutive elements. `indices` is room to work in, kept between calls.
    pub(super) fn set_range(&mut self, first: u32, values: &[V], indices: &mut Vec<u32>) -> Result<(), MapError> {
        indices.clear();
        indices.extend((first..).take(values.len()));
        syscall::write_all(self.map.map().fd().as_fd(), indices, values).map_err(|source| MapError {
            map: self.name,
            operation: Operation::Write,
            source,
        })
    }
}

pub(super) fn failed(map: &'static str, operation: Operation, error: AyaError) -> MapError {
    let source = match error {
        AyaError::SyscallError(error) => error.io_error,
        AyaError::IoError(error) => error,
        AyaError::KeyNotFound | AyaError::ElementNotFound => io::Error::from_raw_os_error(nix::libc::ENOENT),
        other => io::Error::other(other),
    };
    MapError { map, operation, source }
}

/// A prefix: how many of its first bits count, and its data.
pub(super) type Prefix<K> = (u32, K);

/// Some prefixes, and the last of them where there may be more.
pub(super) type Prefixes<K> = (Vec<Prefix<K>>, Option<Prefix<K>>);

/// A table of prefixes with its name. What matters is which prefixes are there, not their values.
#[derive(Debug)]
pub(super) struct PrefixTable<K, V> {
    map: LpmTrie<MapData, K, V>,
    name: &'static str,
}

impl<K: Pod, V: Pod> PrefixTable<K, V> {
    pub(super) fn open(
        open: &mut impl FnMut(&'static str) -> Result<Map, LoaderError>,
        name: &'static str,
    ) -> Result<Self, LoaderError> {
        let map = LpmTrie::try_from(open(name)?).map_err(|source| LoaderError::Map { map: name, source })?;
        Ok(Self { map, name })
    }

    /// How many elements it can hold.
    pub(super) fn capacity(&self) -> Result<u32, LoaderError> {
        let info = self.map.map().info().map_err(|source| LoaderError::Map { map: self.name, source })?;
        Ok(info.max_entries())
    }

    /// Reads about this many prefixes, after the last of an earlier call, else the first. If that one was removed meanwhile,
    /// some come again, or not at all.
    pub(super) fn read_some(&self, after: Option<Prefix<K>>, about: usize) -> Result<Prefixes<K>, MapError> {
        let (mut keys, mut values) = (Vec::<Key<K>>::new(), Vec::<V>::new());
        let after = after.map(|(bits, data)| Key::new(bits, data));
        let next = syscall::read_some(self.map.map().fd().as_fd(), after, about, &mut keys, &mut values);
        let next = next.map_err(|source| MapError { map: self.name, operation: Operation::Read, source })?;
        let prefix = |key: Key<K>| (key.prefix_len(), key.data());
        Ok((keys.into_iter().map(prefix).collect(), next.map(prefix)))
    }

    /// Every prefix.
    pub(super) fn read_all(&self) -> Result<Vec<Prefix<K>>, MapError> {
        let keys = self.map.keys().map(|key| key.map(|key| (key.prefix_len(), key.data())));
        keys.collect::<Result<_, _>>().map_err(|error| failed(self.name, Operation::Read, error))
    }

    pub(super) fn set(&mut self, bits: u32, data: K, value: &V) -> Result<(), MapError> {
        let set = self.map.insert(&Key::new(bits, data), value, 0);
        set.map_err(|error| failed(self.name, Operation::Write, error))
    }

    pub(super) fn remove(&mut self, bits: u32, data: K) -> Result<(), MapError> {
        let removed = self.map.remove(&Key::new(bits, data));
        match removed.map_err(|error| failed(self.name, Operation::Remove, error)) {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}
