//! The ways to install it that exist both as values of the chart and as components of kustomize: one directory each, which
//! holds an overlay and a file of values.

use std::path::{Path, PathBuf};

use serde_json::{Value, to_string_pretty};

use crate::render;

/// All of them, in order.
pub(crate) fn all() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/variants");
    let entries = std::fs::read_dir(&directory).expect("the directory is in the repository");
    let mut all: Vec<_> = entries.map(|entry| entry.expect("it can be read").path()).collect();
    all.sort();
    assert!(all.len() >= 4, "{all:?}");
    all
}

/// The one with the API server's address and nothing else.
pub(crate) fn usual() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/variants/usual")
}

/// What the chart renders.
pub(crate) fn by_helm(variant: &Path) -> Vec<Value> {
    render::chart(&["--values", variant.join("values.yaml").to_str().expect("UTF-8")])
}

pub(crate) fn chart_and_kustomize_render_the_same_objects() {
    for variant in all() {
        let (helm, kustomize) = (by_helm(&variant), render::kustomize(&variant));
        let names = |objects: &[Value]| objects.iter().map(render::name).collect::<Vec<_>>();
        assert_eq!(names(&helm), names(&kustomize), "{}", variant.display());
        for (helm, kustomize) in helm.iter().zip(&kustomize) {
            let (left, right) = (to_string_pretty(helm).expect("JSON"), to_string_pretty(kustomize).expect("JSON"));
            let first = left.lines().zip(right.lines()).find(|(left, right)| left != right);
            assert!(
                helm == kustomize,
                "{}: first difference {first:?}\nchart: {left}\nkustomize: {right}",
                variant.display()
            );
        }
    }
}
