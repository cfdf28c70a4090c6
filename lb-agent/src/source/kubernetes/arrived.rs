//! An object of the API, reduced while it is parsed.

use std::{borrow::Cow, marker::PhantomData};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::source::{Reduce, Reduced, reduce_json};

/// What is kept of an object of kind `K`. Parsing it never fails because of what the object holds: one that is not of
/// its kind's shape is rejected, and the rest of its list arrives.
#[derive(Clone, Debug)]
pub(super) struct Arrived<K> {
    /// What became of it.
    pub(super) reduced: Reduced,
    /// Only `resourceVersion`, which kube's watcher resumes from.
    metadata: ObjectMeta,
    kind: PhantomData<fn() -> K>,
}

impl<'de, K: Reduce> Deserialize<'de> for Arrived<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Value::deserialize(deserializer)?;
        let resource_version = object["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        let metadata = ObjectMeta { resource_version, ..ObjectMeta::default() };
        Ok(Self { reduced: reduce_json::<K>(&object), metadata, kind: PhantomData })
    }
}

impl<K: Reduce> Resource for Arrived<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
