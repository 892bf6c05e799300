//! The sources of the program without their tests, as syntax trees: the checks of floors and of names read these.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use proc_macro2::TokenStream;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Attribute, ImplItem, Item, Meta, Token, TraitItem};

/// The library's name, by which `main.rs` reaches it.
pub const LIBRARY: &str = "realtime_operator";

/// A file below `src/`, without what is compiled for tests only.
pub struct SourceFile {
    /// Path below `src/`, such as `edge/mod.rs`.
    pub path: String,
    /// Module path, such as `["edge", "session"]`; empty for `lib.rs`.
    pub module: Vec<String>,
    /// Attributes of the file itself, such as its `//!` comment.
    pub attributes: Vec<Attribute>,
    pub items: Vec<Item>,
    /// Lines outside tests, with comments.
    pub lines: Vec<String>,
}

impl SourceFile {
    /// Name of the room, a folder or file of `src/`; empty for the roots of the crates.
    pub fn room(&self) -> &str {
        room_of(&self.path, "")
    }
}

/// The entry of `folder` that holds `path`: a folder's name or a file's stem. Empty for the module of `folder` itself
/// and for paths outside.
pub fn room_of<'a>(path: &'a str, folder: &str) -> &'a str {
    let Some(inside) = path.strip_prefix(folder) else { return "" };
    let entry = inside.split('/').next().unwrap_or_default();
    match entry.strip_suffix(".rs").unwrap_or(entry) {
        "lib" | "main" | "mod" => "",
        room => room,
    }
}

/// Path and text of every file of the program.
pub fn read_sources() -> Vec<(String, String)> {
    read_rust_files("src")
}

/// Path and text of every Rust file below a folder of the repository.
pub fn read_rust_files(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut sources = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inside = path.strip_prefix(&root).expect("a path below the folder");
                let text = fs::read_to_string(&path).expect("a source file");
                sources.push((inside.to_string_lossy().replace('\\', "/"), text));
            }
        }
    }
    assert!(sources.len() > 20, "the files were found");
    sources.sort();
    sources
}

/// Parses sources and drops their tests. A line of a span can be asked for only on the thread that parsed it.
pub fn parse_sources<P: AsRef<str>, T: AsRef<str>>(sources: &[(P, T)]) -> Vec<SourceFile> {
    let mut test_modules = BTreeSet::new();
    let mut files = Vec::new();
    for (path, text) in sources {
        let (path, text) = (path.as_ref(), text.as_ref());
        let parsed = syn::parse_file(text);
        assert!(parsed.is_ok(), "{path}: {:?}", parsed.err());
        let Ok(mut parsed) = parsed else { continue };
        let module = module_of(path);
        let mut tests = Tests { modules: &mut test_modules, lines: Vec::new() };
        tests.strip_items(&mut parsed.items, &module);
        let test_lines = tests.lines;
        let lines = text.lines().enumerate();
        let kept = lines.filter(|(index, _)| !test_lines.iter().any(|range| range.contains(&(index + 1))));
        files.push(SourceFile {
            path: path.to_owned(),
            module,
            attributes: parsed.attrs,
            items: parsed.items,
            lines: kept.map(|(_, line)| line.to_owned()).collect(),
        });
    }
    files.retain(|file| (1..=file.module.len()).all(|depth| !test_modules.contains(&file.module[..depth])));
    files
}

fn module_of(path: &str) -> Vec<String> {
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    let mut module: Vec<String> = stem.split('/').map(str::to_owned).collect();
    if stem == "lib" || module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

/// Removes tests from a file.
struct Tests<'a> {
    /// Modules in files of their own that only tests have: `#[cfg(test)] mod model;`.
    modules: &'a mut BTreeSet<Vec<String>>,
    lines: Vec<RangeInclusive<usize>>,
}

impl Tests<'_> {
    fn strip_items(&mut self, items: &mut Vec<Item>, module: &[String]) {
        items.retain_mut(|item| {
            let is_test = item_attributes(item).iter().any(is_test_attribute);
            if let Item::Mod(inner) = item {
                let mut path = module.to_vec();
                path.push(inner.ident.to_string());
                match &mut inner.content {
                    None if is_test => _ = self.modules.insert(path),
                    Some((_, content)) if !is_test => self.strip_items(content, &path),
                    _ => {}
                }
            }
            match item {
                Item::Impl(block) => block.items.retain(|item| self.keeps(impl_item_attributes(item), item)),
                Item::Trait(block) => block.items.retain(|item| self.keeps(trait_item_attributes(item), item)),
                _ => {}
            }
            if is_test {
                self.lines.push(line_range(item));
            }
            !is_test
        });
    }

    fn keeps(&mut self, attributes: &[Attribute], node: &impl Spanned) -> bool {
        let is_test = attributes.iter().any(is_test_attribute);
        if is_test {
            self.lines.push(line_range(node));
        }
        !is_test
    }
}

/// Lines from a node's first token to its last.
pub fn line_range(node: &impl Spanned) -> RangeInclusive<usize> {
    let span = node.span();
    span.start().line..=span.end().line
}

fn item_attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn impl_item_attributes(item: &ImplItem) -> &[Attribute] {
    match item {
        ImplItem::Const(item) => &item.attrs,
        ImplItem::Fn(item) => &item.attrs,
        ImplItem::Type(item) => &item.attrs,
        _ => &[],
    }
}

fn trait_item_attributes(item: &TraitItem) -> &[Attribute] {
    match item {
        TraitItem::Const(item) => &item.attrs,
        TraitItem::Fn(item) => &item.attrs,
        TraitItem::Type(item) => &item.attrs,
        _ => &[],
    }
}

fn is_test_attribute(attribute: &Attribute) -> bool {
    let path = attribute.path();
    if path.is_ident("cfg") {
        return attribute.parse_args::<Meta>().is_ok_and(|condition| needs_test(&condition));
    }
    path.segments.last().is_some_and(|segment| segment.ident == "test")
}

/// Whether a condition of `cfg` holds in tests only.
fn needs_test(condition: &Meta) -> bool {
    let Meta::List(list) = condition else { return condition.path().is_ident("test") };
    let Ok(parts) = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated) else { return false };
    match list.path.get_ident().map(ToString::to_string).as_deref() {
        Some("all") => parts.iter().any(needs_test),
        Some("any") => !parts.is_empty() && parts.iter().all(needs_test),
        _ => false,
    }
}

/// Paths that stand in the tokens of a macro call, which are no syntax tree: `a::b::c` in `format!("{}", a::b::c())`.
pub fn token_paths(tokens: TokenStream) -> Vec<(Vec<String>, usize)> {
    use proc_macro2::TokenTree::{Group, Ident, Punct};
    let mut paths = Vec::new();
    let mut path: (Vec<String>, usize) = (Vec::new(), 0);
    let mut colons = 0;
    for token in tokens {
        match token {
            Ident(ident) => {
                if colons != 2 || path.0.is_empty() {
                    paths.push(std::mem::take(&mut path));
                    path.1 = ident.span().start().line;
                }
                path.0.push(ident.to_string());
                colons = 0;
            }
            Punct(punct) if punct.as_char() == ':' => colons += 1,
            other => {
                paths.push(std::mem::take(&mut path));
                colons = 0;
                if let Group(group) = other {
                    paths.extend(token_paths(group.stream()));
                }
            }
        }
    }
    paths.push(path);
    paths.retain(|(segments, _)| segments.len() > 1);
    paths
}

#[test]
fn tests_are_no_part_of_a_source() {
    let bus =
        "mod memory;\n#[cfg(test)]\nmod model;\n\n#[cfg(all(test, feature = \"x\"))]\nmod tests {\n}\nfn a() {}\n";
    let sources = [("bus/mod.rs", bus), ("bus/memory.rs", "impl A { #[cfg(test)] fn b() {} }"), ("bus/model.rs", "")];
    let files = parse_sources(&sources);
    let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["bus/mod.rs", "bus/memory.rs"]);
    assert_eq!(files[0].lines, ["mod memory;", "", "fn a() {}"]);
    assert_eq!((files[0].items.len(), files[0].room()), (2, "bus"));
    assert!(matches!(&files[1].items[0], Item::Impl(block) if block.items.is_empty()));
    let kept = parse_sources(&[("a.rs", "#[cfg(not(test))] fn a() {} #[cfg(any(test, unix))] fn b() {}")]);
    assert_eq!((kept[0].items.len(), kept[0].room(), kept[0].module.len()), (2, "a", 1));
}

#[test]
fn paths_are_found_in_the_tokens_of_macros() {
    let tokens: TokenStream = "x, if a::b(c) { $crate::d::E::<f::G>::h } else { y : z }".parse().expect("tokens");
    let paths: Vec<String> = token_paths(tokens).into_iter().map(|(path, _)| path.join("::")).collect();
    assert_eq!(paths, ["a::b", "crate::d::E", "f::G"]);
}
