//! Reads the items, paths and lengths of one file into the graph.

use syn::visit::{self, Visit};
use syn::{Item, UseTree, Visibility};

use super::FUNCTION_LINES_MAX;
use super::graph::{Graph, LongFunction, Mention};
use super::paths::{Import, Module};
use crate::source_tree::{line_range, token_paths};

/// Reads the items and paths of one file.
pub(super) struct FileReader<'a> {
    pub(super) graph: &'a mut Graph,
    pub(super) mentions: &'a mut Vec<Mention>,
    pub(super) file: usize,
    pub(super) module: Vec<String>,
}

impl FileReader<'_> {
    pub(super) fn read_module(&mut self, module: Vec<String>, items: &[Item]) {
        let outer = std::mem::replace(&mut self.module, module);
        let mut content = Module { file: self.file, ..Module::default() };
        content.definitions.extend(items.iter().filter_map(item_name));
        self.graph.modules.insert(self.module.clone(), content);
        for item in items {
            self.visit_item(item);
        }
        self.module = outer;
    }

    fn add_mention(&mut self, path: Vec<String>, line: usize) {
        let module = self.module.clone();
        self.mentions.push(Mention { file: self.file, line, module, path, is_use: false, is_reexport: false });
    }

    fn read_use(&mut self, tree: &UseTree, prefix: &[String], is_reexport: bool) {
        let (name, last) = match tree {
            UseTree::Path(path) => {
                return self.read_use(&path.tree, &[prefix, &[path.ident.to_string()]].concat(), is_reexport);
            }
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.read_use(tree, prefix, is_reexport));
            }
            UseTree::Name(name) => (name.ident.to_string(), Some(name.ident.to_string())),
            UseTree::Rename(rename) => (rename.rename.to_string(), Some(rename.ident.to_string())),
            UseTree::Glob(_) => (String::new(), None),
        };
        let mut path = prefix.to_vec();
        let (mut name, is_glob) = (name, last.is_none());
        match last.as_deref() {
            Some("self") if !prefix.is_empty() && name == "self" => name = prefix.last().cloned().unwrap_or_default(),
            Some("self") if !prefix.is_empty() => {}
            Some(last) => path.push(last.to_owned()),
            None => {}
        }
        let (line, module) = (*line_range(tree).start(), self.module.clone());
        let mention = Mention { file: self.file, line, module, path: path.clone(), is_use: true, is_reexport };
        self.mentions.push(mention);
        if let Some(module) = self.graph.modules.get_mut(&self.module) {
            module.imports.push(Import { name, path, is_glob });
        }
    }

    fn check_length(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let lines = line_range(body).end() + 1 - line_range(signature).start();
        if lines > FUNCTION_LINES_MAX {
            let name = signature.ident.to_string();
            self.graph.long_functions.push(LongFunction { file: self.file, name, lines });
        }
    }
}

impl<'ast> Visit<'ast> for FileReader<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if let Some((_, items)) = &item.content {
            let module = [self.module.as_slice(), &[item.ident.to_string()]].concat();
            self.read_module(module, items);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.read_use(&item.tree, &[], !matches!(item.vis, Visibility::Inherited));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add_mention(segments, *line_range(path).start());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        for (path, line) in token_paths(call.tokens.clone()) {
            self.add_mention(path, line);
        }
        visit::visit_macro(self, call);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.check_length(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.check_length(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.check_length(&item.sig, body);
        }
        visit::visit_trait_item_fn(self, item);
    }

    /// `derive` and its like name no file.
    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}

    /// `pub(in crate::x)` uses nothing of `x`.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

fn item_name(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}
