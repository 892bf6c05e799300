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

/// The look-up of one path.
pub(super) struct Lookup<'a> {
    modules: &'a BTreeMap<Vec<String>, Module>,
    /// Modules on the way of the path.
    pub(super) named: BTreeSet<Vec<String>>,
    /// Names that are looked up already: globs may form a circle.
    pending: Vec<(Vec<String>, String)>,
}

impl<'a> Lookup<'a> {
    pub(super) fn new(modules: &'a BTreeMap<Vec<String>, Module>) -> Self {
        Self { modules, named: BTreeSet::new(), pending: Vec::new() }
    }

    /// Follows `path` from inside `module`.
    pub(super) fn resolve(&mut self, module: &[String], path: &[String]) -> BTreeSet<Target> {
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
            return self.descend(base, rest);
        }
        let Some((first, others)) = path.split_first() else { return BTreeSet::new() };
        let found = self.look_up(module, first);
        if !found.is_empty() {
            return self.follow(found, others);
        }
        if others.is_empty() {
            // Else a local variable, or of the prelude.
            return self.external_globs(module, first);
        }
        BTreeSet::from([Target::External(path.to_vec())])
    }

    /// Follows the path of a `use`, in which a lone name that the module does not have is a crate.
    pub(super) fn resolve_use(&mut self, module: &[String], path: &[String]) -> BTreeSet<Target> {
        let targets = self.resolve(module, path);
        let is_crate = targets.is_empty() && path.len() == 1;
        if is_crate { BTreeSet::from([Target::External(path.to_vec())]) } else { targets }
    }

    fn descend(&mut self, base: Vec<String>, rest: &[String]) -> BTreeSet<Target> {
        self.named.insert(base.clone());
        let Some((first, others)) = rest.split_first() else { return BTreeSet::from([Target::Module(base)]) };
        let found = self.look_up(&base, first);
        if found.is_empty() {
            // A macro may have made the item.
            return self.modules.get(&base).map(|module| Target::Item(module.file)).into_iter().collect();
        }
        self.follow(found, others)
    }

    fn follow(&mut self, found: BTreeSet<Target>, rest: &[String]) -> BTreeSet<Target> {
        // Before `::`, a name of both a module and a function is the module.
        let has_module = !rest.is_empty() && found.iter().any(|target| matches!(target, Target::Module(_)));
        let mut targets = BTreeSet::new();
        for target in found {
            match target {
                Target::Module(module) => targets.extend(self.descend(module, rest)),
                _ if has_module => {}
                Target::Item(file) => _ = targets.insert(Target::Item(file)),
                Target::External(path) => _ = targets.insert(Target::External([path.as_slice(), rest].concat())),
            }
        }
        targets
    }

    /// Finds a name in a module: a child, an item, an import, or an item of a glob import.
    fn look_up(&mut self, module: &[String], name: &str) -> BTreeSet<Target> {
        let key = (module.to_vec(), name.to_owned());
        let (Some(content), false) = (self.modules.get(module), self.pending.contains(&key)) else {
            return BTreeSet::new();
        };
        self.pending.push(key);
        let mut targets = BTreeSet::new();
        let child = [module, &[name.to_owned()]].concat();
        if self.modules.contains_key(&child) {
            targets.insert(Target::Module(child));
        }
        if content.definitions.contains(name) {
            targets.insert(Target::Item(content.file));
        }
        for import in content.imports.iter().filter(|import| !import.is_glob && import.name == name) {
            targets.extend(self.resolve_use(module, &import.path));
        }
        if targets.is_empty() {
            for import in content.imports.iter().filter(|import| import.is_glob) {
                // The path of a glob names no module of the path that is looked up.
                let named = std::mem::take(&mut self.named);
                let globbed = self.resolve_use(module, &import.path);
                self.named = named;
                for target in globbed {
                    if let Target::Module(from) = target {
                        targets.extend(self.look_up(&from, name));
                    }
                }
            }
        }
        self.pending.pop();
        targets
    }

    /// A name that a module does not define may come from a glob import of another crate.
    fn external_globs(&self, module: &[String], name: &str) -> BTreeSet<Target> {
        let imports = self.modules.get(module).map_or(&[][..], |module| &module.imports);
        let globs = imports.iter().filter(|import| import.is_glob);
        let targets = globs.flat_map(|glob| Self::new(self.modules).resolve_use(module, &glob.path));
        let external = targets.filter_map(|target| match target {
            Target::External(path) => Some(Target::External([path.as_slice(), &[name.to_owned()]].concat())),
            _ => None,
        });
        external.collect()
    }
}
