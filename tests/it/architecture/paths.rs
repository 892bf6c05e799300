//! The resolution of paths: through `use`, re-exports and globs to the file that defines the item.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::source_tree::LIBRARY;

/// A `use` of one name, as its module sees it.
pub(super) struct Import {
    pub(super) name: String,
    pub(super) path: Vec<String>,
    pub(super) is_glob: bool,
}

#[derive(Default)]
pub(super) struct Module {
    pub(super) file: usize,
    pub(super) definitions: HashSet<String>,
    pub(super) imports: Vec<Import>,
}

/// The end of a path.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Target {
    /// An item that this file defines.
    Item(usize),
    Module(Vec<String>),
    /// A path into another crate.
    External(Vec<String>),
}
/// Follows `path` from inside `module`. `pending` holds the names that are looked up already: globs may go round.
pub(super) fn resolve(
    modules: &BTreeMap<Vec<String>, Module>,
    module: &[String],
    path: &[String],
    named: &mut BTreeSet<Vec<String>>,
    pending: &mut Vec<(Vec<String>, String)>,
) -> BTreeSet<Target> {
    let mut base = module.to_vec();
    let mut rest = path;
    let mut is_anchored = false;
    while let Some((first, others)) = rest.split_first() {
        match first.as_str() {
            "crate" => base.clear(),
            name if name == LIBRARY => base.clear(),
            "self" => {}
            "super" => _ = base.pop(),
            _ => break,
        }
        (is_anchored, rest) = (true, others);
    }
    if is_anchored {
        return descend(modules, base, rest, named, pending);
    }
    let Some((first, others)) = path.split_first() else { return BTreeSet::new() };
    let found = look_up(modules, module, first, named, pending);
    if !found.is_empty() {
        return follow(modules, found, others, named, pending);
    }
    if others.is_empty() {
        // Else a local variable, or of the prelude.
        return external_globs(modules, module, first);
    }
    BTreeSet::from([Target::External(path.to_vec())])
}

/// Follows the path of a `use`, in which a lone name that the module does not have is a crate.
pub(super) fn resolve_use(
    modules: &BTreeMap<Vec<String>, Module>,
    module: &[String],
    path: &[String],
    named: &mut BTreeSet<Vec<String>>,
    pending: &mut Vec<(Vec<String>, String)>,
) -> BTreeSet<Target> {
    let targets = resolve(modules, module, path, named, pending);
    let is_crate = targets.is_empty() && path.len() == 1;
    if is_crate { BTreeSet::from([Target::External(path.to_vec())]) } else { targets }
}

pub(super) fn descend(
    modules: &BTreeMap<Vec<String>, Module>,
    base: Vec<String>,
    rest: &[String],
    named: &mut BTreeSet<Vec<String>>,
    pending: &mut Vec<(Vec<String>, String)>,
) -> BTreeSet<Target> {
    named.insert(base.clone());
    let Some((first, others)) = rest.split_first() else { return BTreeSet::from([Target::Module(base)]) };
    let found = look_up(modules, &base, first, named, pending);
    if found.is_empty() {
        // A macro may have made the item.
        return modules.get(&base).map(|module| Target::Item(module.file)).into_iter().collect();
    }
    follow(modules, found, others, named, pending)
}

pub(super) fn follow(
    modules: &BTreeMap<Vec<String>, Module>,
    found: BTreeSet<Target>,
    rest: &[String],
    named: &mut BTreeSet<Vec<String>>,
    pending: &mut Vec<(Vec<String>, String)>,
) -> BTreeSet<Target> {
    // Before `::`, a name of both a module and a function is the module.
    let has_module = !rest.is_empty() && found.iter().any(|target| matches!(target, Target::Module(_)));
    let mut targets = BTreeSet::new();
    for target in found {
        match target {
            Target::Module(module) => targets.extend(descend(modules, module, rest, named, pending)),
            _ if has_module => {}
            Target::Item(file) => _ = targets.insert(Target::Item(file)),
            Target::External(path) => _ = targets.insert(Target::External([path.as_slice(), rest].concat())),
        }
    }
    targets
}

/// Finds a name in a module: a child, an item, an import, or an item of a glob import.
pub(super) fn look_up(
    modules: &BTreeMap<Vec<String>, Module>,
    module: &[String],
    name: &str,
    named: &mut BTreeSet<Vec<String>>,
    pending: &mut Vec<(Vec<String>, String)>,
) -> BTreeSet<Target> {
    let key = (module.to_vec(), name.to_owned());
    let (Some(content), false) = (modules.get(module), pending.contains(&key)) else { return BTreeSet::new() };
    pending.push(key);
    let mut targets = BTreeSet::new();
    let child = [module, &[name.to_owned()]].concat();
    if modules.contains_key(&child) {
        targets.insert(Target::Module(child));
    }
    if content.definitions.contains(name) {
        targets.insert(Target::Item(content.file));
    }
    for import in content.imports.iter().filter(|import| !import.is_glob && import.name == name) {
        targets.extend(resolve_use(modules, module, &import.path, named, pending));
    }
    if targets.is_empty() {
        for import in content.imports.iter().filter(|import| import.is_glob) {
            for target in resolve_use(modules, module, &import.path, &mut BTreeSet::new(), pending) {
                if let Target::Module(from) = target {
                    targets.extend(look_up(modules, &from, name, named, pending));
                }
            }
        }
    }
    pending.pop();
    targets
}

/// A name that a module does not define may come from a glob import of another crate.
pub(super) fn external_globs(
    modules: &BTreeMap<Vec<String>, Module>,
    module: &[String],
    name: &str,
) -> BTreeSet<Target> {
    let imports = modules.get(module).map_or(&[][..], |module| &module.imports);
    let globs = imports.iter().filter(|import| import.is_glob);
    let targets = globs.flat_map(|glob| resolve_use(modules, module, &glob.path, &mut BTreeSet::new(), &mut vec![]));
    let external = targets.filter_map(|target| match target {
        Target::External(path) => Some(Target::External([path.as_slice(), &[name.to_owned()]].concat())),
        _ => None,
    });
    external.collect()
}
