//! The description of a decoder: everything that forward, backward and planning need to know of a model family.

use eyas_backend::{Activation, NormSpec, QkvLayout};

use crate::rope::RopeSpec;

/// A decoder-only transformer, described. Families differ in data, not in code.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoder {
    /// The family, as people call it: "Falcon", "Llama", ...
    pub family: &'static str,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// What attention looks like.
    pub attention: Attention,
    /// How positions enter.
    pub positions: Positions,
    /// The norms.
    pub norm: NormSpec,
    /// What the MLP looks like.
    pub mlp: Mlp,
    /// How a block's parts are wired to the residual stream.
    pub wiring: Wiring,
    /// Which linear layers have a bias.
    pub biases: Biases,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// The longest sequence that the model was made for.
    pub max_positions: usize,
    /// Each block's sliding window; as many as there are blocks.
    pub windows: Vec<Option<usize>>,
    /// What the modules are called.
    pub names: ModuleNames,
}

/// The attention of every block.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Where each head lies in the fused activation.
    pub layout: QkvLayout,
    /// Multiplies `q . k`.
    pub scale: f32,
    /// Epsilon of the RMS norm of every query and key head, where there is one (Qwen3).
    pub head_norm_eps: Option<f32>,
}

/// How positions enter attention.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// Rotary embedding of queries and keys.
    Rope(RopeSpec),
    /// A bias of the scores, linear in the key's position.
    Alibi,
}

/// The MLP of every block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mlp {
    /// Between the two projections.
    pub activation: Activation,
    /// Columns of the activation's output.
    pub intermediate_size: usize,
}

/// How attention and MLP are wired to the residual stream `x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// `x += attention(norm1(x)); x += mlp(norm2(x))`.
    Sequential,
    /// `x += attention(norm1(x)) + mlp(norm1(x))`: Falcon-7B.
    ParallelOneNorm,
    /// `x += attention(norm1(x)) + mlp(norm2(x))`: Falcon-40B.
    ParallelTwoNorms,
}

/// Which linear layers have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// Query, key and value.
    pub qkv: bool,
    /// Attention's output.
    pub attention_out: bool,
    /// Both halves of the MLP.
    pub mlp: bool,
}

/// The names of a family's modules in Hugging Face checkpoints and PEFT adapters.
///
/// Names inside a block are relative to `blocks.<i>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleNames {
    /// The token embedding.
    pub embedding: &'static str,
    /// What stands before a block's number.
    pub blocks: &'static str,
    /// Query, key and value: one fused module, or three.
    pub qkv: &'static [&'static str],
    /// Attention's output.
    pub attention_out: &'static str,
    /// The MLP's first half: one module, or gate and up.
    pub mlp_in: &'static [&'static str],
    /// The MLP's second half.
    pub mlp_out: &'static str,
    /// The norm before attention.
    pub norm1: &'static str,
    /// The norm before the MLP, where it has its own.
    pub norm2: &'static str,
    /// The norms of query and key heads, where they exist.
    pub head_norms: [&'static str; 2],
    /// The last norm.
    pub final_norm: &'static str,
    /// The head.
    pub head: &'static str,
}

/// One of a block's four projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProjectionKind {
    /// To query, key and value.
    Qkv,
    /// From attention to the residual stream.
    AttentionOut,
    /// Into the MLP.
    MlpIn,
    /// From the MLP to the residual stream.
    MlpOut,
}

impl ProjectionKind {
    /// All four, in the order in which a block runs them and in which adapters lay out their updates.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::AttentionOut, Self::MlpIn, Self::MlpOut];
}

/// A linear layer of the model: its module path and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearModule {
    /// Path in the model, without `.weight`: `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Input features.
    pub in_features: usize,
    /// Output features.
    pub out_features: usize,
    /// Whether it has a bias.
    pub bias: bool,
}

impl Decoder {
    /// The number of blocks.
    pub fn blocks(&self) -> usize {
        self.windows.len()
    }

    /// Columns of attention's output.
    pub fn attention_width(&self) -> usize {
        self.attention.layout.heads * self.attention.layout.head_dim
    }

    /// Columns of the MLP's first half.
    pub fn mlp_in_width(&self) -> usize {
        self.mlp.intermediate_size * self.mlp.activation.fan_in()
    }

    /// Input and output columns of a projection.
    pub fn projection_shape(&self, kind: ProjectionKind) -> (usize, usize) {
        match kind {
            ProjectionKind::Qkv => (self.hidden_size, self.attention.layout.width()),
            ProjectionKind::AttentionOut => (self.attention_width(), self.hidden_size),
            ProjectionKind::MlpIn => (self.hidden_size, self.mlp_in_width()),
            ProjectionKind::MlpOut => (self.mlp.intermediate_size, self.hidden_size),
        }
    }

    /// The path of a module inside a block.
    pub fn block_path(&self, block: usize, name: &str) -> String {
        format!("{}.{block}.{name}", self.names.blocks)
    }

    /// The paths of a block's norms.
    pub fn norm_paths(&self, block: usize) -> Vec<String> {
        let names = &self.names;
        let mut paths = vec![self.block_path(block, names.norm1)];
        if self.wiring != Wiring::ParallelOneNorm {
            paths.push(self.block_path(block, names.norm2));
        }
        paths
    }

    /// The linear layers of one projection, in the order of their columns.
    pub fn linears(&self, block: usize, kind: ProjectionKind) -> Vec<LinearModule> {
        let (in_features, out_features) = self.projection_shape(kind);
        let (names, bias): (&[&str], bool) = match kind {
            ProjectionKind::Qkv => (self.names.qkv, self.biases.qkv),
            ProjectionKind::AttentionOut => (&[self.names.attention_out], self.biases.attention_out),
            ProjectionKind::MlpIn => (self.names.mlp_in, self.biases.mlp),
            ProjectionKind::MlpOut => (&[self.names.mlp_out], self.biases.mlp),
        };
        let layout = &self.attention.layout;
        names
            .iter()
            .enumerate()
            .map(|(part, name)| LinearModule {
                path: self.block_path(block, name),
                in_features,
                out_features: match (kind, names.len()) {
                    (_, 1) => out_features,
                    (ProjectionKind::Qkv, _) if part == 0 => layout.heads * layout.head_dim,
                    (ProjectionKind::Qkv, _) => layout.kv_heads * layout.head_dim,
                    _ => out_features / names.len(),
                },
                bias,
            })
            .collect()
    }

    /// Every linear layer of every block, block by block.
    pub fn all_linears(&self) -> impl Iterator<Item = (usize, ProjectionKind, LinearModule)> + '_ {
        (0..self.blocks()).flat_map(move |block| {
            ProjectionKind::ALL.into_iter().flat_map(move |kind| {
                self.linears(block, kind).into_iter().map(move |linear| (block, kind, linear))
            })
        })
    }

    /// Weights in the blocks' linear layers.
    pub fn linear_parameters(&self) -> u64 {
        self.all_linears().map(|(.., linear)| (linear.in_features * linear.out_features) as u64).sum()
    }

    /// All weights, biases and norms included.
    pub fn parameters(&self) -> u64 {
        let hidden = self.hidden_size as u64;
        let table = self.vocab_size as u64 * hidden;
        let biases: u64 = self
            .all_linears()
            .filter(|(.., linear)| linear.bias)
            .map(|(.., linear)| linear.out_features as u64)
            .sum();
        let per_norm = match self.norm.kind {
            eyas_backend::NormKind::LayerNorm => 2 * hidden,
            eyas_backend::NormKind::RmsNorm => hidden,
        };
        let norms_a_block = if self.wiring == Wiring::ParallelOneNorm { 1 } else { 2 };
        let head_norms =
            self.attention.head_norm_eps.map_or(0, |_| 2 * self.attention.layout.head_dim as u64);
        let tables = if self.tie_word_embeddings { table } else { 2 * table };
        let blocks = self.blocks() as u64;
        self.linear_parameters()
            + biases
            + tables
            + (blocks * norms_a_block + 1) * per_norm
            + blocks * head_norms
    }
}
