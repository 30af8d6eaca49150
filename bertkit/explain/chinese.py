"""The words of pages in Chinese: templates and names in English, as they stand in the code."""

from bertkit.explain.chinese_names import COLUMNS, NAMES

_PAGE = {
    "Model: {model}": "模型：{model}",
    "{what}: {which}": "{what}：{which}",
    "The whole text": "全文",
    "The numbers as a table": "数值表",
    "All {n} rows": "全部 {n} 行",
    "Not drawn": "未画出",
    "Of {n} the first {m} are drawn; the numbers of all are in --json and --npz.": (
        "共 {n} 个，画出前 {m} 个；全部数值在 --json 和 --npz 中。"
    ),
    "Left out of the JSON in this page, to keep it small: {what}; see --json, --npz.": (
        "为控制页面大小，本页的 JSON 省去了：{what}；见 --json、--npz。"
    ),
    "figures": "显示数值",
    "nats": "奈特",
    "share": "比例",
    "weight": "权重",
    "none": "无",
    " and ": " 与 ",
    "what is shown": "显示什么",
    "Word by word": "逐词",
    "Token by token": "逐词元",
    "Loss in nats": "损失（奈特）",
    "Accuracy": "准确率",
    "{at} in {texts}": "{texts}中的 {at}",
    "Probability of {target} at {at}": "{at} 处 {target} 的概率",
}
_LOOKING = {
    "The vector of a position: {texts}": "一个位置的向量：{texts}",
    "Vectors of {texts}": "向量：{texts}",
    "Each row is a layer; from left to right the word embeddings nearest in angle.": (
        "每行一层；从左到右是夹角最近的词嵌入。"
    ),
    "The length of the difference to the layer before.": "与上一层之差的长度。",
    "Mean change in each layer": "每层的平均变化",
    "Mean cosine with the last layer": "与最后一层的平均余弦",
    "Nearest words at {at}": "{at} 处最近的词",
    "How far each layer moves {at}": "每层把 {at} 移动多远",
    "Lens": "透镜",
    "Tuned lens": "调优透镜",
    "A row a layer, a column a rank; the figure and the colour are the probability.": (
        "一行一层，一列一个名次；数值和颜色是概率。"
    ),
    "Framed: {target}.": "加框的是 {target}。",
    "What the head reads at {at}": "预测头在 {at} 处读出什么",
    "KL divergence of the last layer's distribution from each layer's, in nats.": (
        "最后一层的分布相对每层分布的 KL 散度，单位奈特。"
    ),
    "Distance to the final answer at {at}": "{at} 处离最终答案的距离",
    "Distance to the final answer (KL, nats)": "离最终答案的距离（KL，奈特）",
    "Accuracy at masked words": "遮住的词的准确率",
    "Attention: {texts}": "注意力：{texts}",
    "Attention over {texts} ({tokens})": "{texts}（{tokens}）上的注意力",
    "All heads": "所有的头",
    "From each token (rows) to each (columns), each head by itself; choose one.": (
        "每个头各一幅小图，从每个词元（行）看向每个词元（列）；点选一个。"
    ),
    "of each head's largest": "相对每个头自己的最大值",
    "One head, token by token": "一个头，逐词元",
    "Rows look, columns are looked at; the deepest colour is this head's largest.": (
        "行是看的一方，列是被看的一方；最深的颜色是该头自己的最大值。"
    ),
    "norm-weighted": "范数加权",
    "Norm-weighted maps are in --json and --npz.": "范数加权图在 --json 和 --npz 中。",
    "The text has {n} tokens and the model {m} heads: too much for maps of single heads on a page. "
    "They are in --json and --npz.": (
        "文本有 {n} 个词元，模型有 {m} 个头：单个头的图放不进一页。数值在 --json 和 --npz 中。"
    ),
    "Single heads": "单个的头",
    "Rollout": "注意力展开（rollout）",
    "All layers multiplied, with the residual; from each token down to the inputs.": (
        "各层相乘，计入残差；从每个词元一直到输入。"
    ),
    "Entropy of each head: low looks at few tokens": "每个头的熵：低则只看少数词元",
    "Mean distance of each head": "每个头的平均距离",
    "Share of the weight on [SEP]": "落在 [SEP] 上的权重比例",
    "Share of the weight on the token before": "落在前一个词元上的权重比例",
    "Share of the weight on the token behind": "落在后一个词元上的权重比例",
}
_ANSWERS = {
    "Attribution ({method}): {texts}": "归因（{method}）：{texts}",
    "Attribution ({method}) over {texts}": "{texts}上的归因（{method}）",
    "{told}, at the baseline ({baseline}) {value}; the values miss the difference by {delta}": (
        "{told}，基线（{baseline}）处 {value}；各值之和与两者之差相差 {delta}"
    ),
    "What makes the model say {target}": "什么让模型说出 {target}",
    "{told}. Blue pushes it up, orange down.": "{told}。蓝色使它升高，橙色使它降低。",
    "{told}. {note}": "{told}。{note}",
    "Sum of a word's values over the {n} times that {label} was explained, divided by these; the "
    "mean {quantity} was {mean}.": (
        "{label} 被解释了 {n} 次；图中是一个词在各次的值之和除以该次数；平均{quantity}为 {mean}。"
    ),
    "Which words push {label}": "哪些词推动 {label}",
    "Score: {text}": "分数：{text}",
    "Scores of {texts}": "{texts}的分数",
    "Together {score} nats; pseudo-perplexity {perplexity}. Deep colour and a long bar: a word "
    "that the model did not expect.": (
        "合计 {score} 奈特；伪困惑度 {perplexity}。颜色深、条形长的词是模型没有料到的。"
    ),
    "Log-probability of each word in nats": "每个词的对数概率（奈特）",
    "Of all {n} texts, the {m} whose tokens have the lowest mean log-probability, worst first; the "
    "bars are these means in nats. Pseudo-perplexity of all: {perplexity}.": (
        "全部 {n} 篇文本中，词元平均对数概率最低的 {m} 篇，最差的在前；条形就是这个平均值（奈特）。"
        "全部文本的伪困惑度：{perplexity}。"
    ),
    "The texts least expected": "最出乎意料的文本",
    "{pairs}: {share} right": "{pairs}：{share} 判对",
    "{scores}: pseudo-perplexity {perplexity} over {tokens}; least expected:": (
        "{scores}：{tokens}，伪困惑度 {perplexity}；最出乎意料的："
    ),
    "Share of pairs decided rightly": "判对的句对比例",
    "The worst mistakes": "最严重的错误",
    "The bad texts that beat their good partners by most; scores in nats, a shorter bar is "
    "likelier.": "坏句得分高出好句最多的句对；分数单位奈特，条形越短越可能。",
    "good": "好句",
    "bad": "坏句",
    "Compared: {models}, {vectors} of {texts}": "比较：{models}，{texts}的 {vectors}",
    "Rows: {first}; columns: {second}.": "行：{first}；列：{second}。",
    "Rank correlation of the distances of {n} vectors.": "{n} 个向量两两距离的秩相关。",
    "Debiased: near 0 for layers that have nothing in common; 1 is equal up to rotation.": (
        "去偏：毫无共同之处的层接近 0；1 表示除旋转外相同。"
    ),
    "Biased: not 0 even for layers that have nothing in common.": (
        "未去偏：即使毫无共同之处的层也不为 0。"
    ),
    "{figure} of layers": "各层的 {figure}",
    "{verb} along {checkpoints}": "{verb}：沿 {checkpoints}",
    "Probe ({kind}): {labels} labels of {what}, learned from {n} of {all_n}, checked on {m} of "
    "{all_m}": (
        "探针（{kind}）：{what}的 {labels} 种标签，"
        "学习 {all_n} 中的 {n} 个，检验 {all_m} 中的 {m} 个"
    ),
    "A probe reads: {reads}. Always saying the commonest label is right in {majority} of the "
    "cases. Control: each {kind} has one fixed random label.": (
        "探针读取：{reads}。总说最常见的标签，准确率为 {majority}。"
        "控制任务：每个{kind}有一个固定的随机标签。"
    ),
    "{n} hidden units": "{n} 个隐藏单元",
    "linear": "线性",
    "What can be read off each layer": "每层能读出什么",
    "Loss by position": "按位置的损失",
    " against {other}": "，对照 {other}",
    "A thin line is one standard error on either side of a mean.": "细线是均值两侧各一个标准误。",
    "loss in nats; ±: one standard error, left out of one position and of a share 0 or 1": (
        "损失单位奈特；± 后是一个标准误，只有一个位置、比例为 0 或 1 时不写"
    ),
    "; after: {other}; change: after less before": "；之后：{other}；变化：之后减之前",
    "The tagger has a CRF: what is explained are its emissions, what the encoder says of each word "
    "before the transitions between tags are added.": (
        "标注模型带 CRF：这里解释的是发射分数，即加上标签转移之前编码器对每个词的判断。"
    ),
}
_CHANGING = {
    "Pushed vectors: {texts}": "推动向量：{texts}",
    "A row a layer, a column a step in lengths of the vector; in the squares the likeliest word, "
    "and the probability of {target}, framed where it is the likeliest. Without a push {word} "
    "is.": (
        "一行一层，一列一个步长（以向量长度为单位）；格中是最可能的词和 {target} 的概率，"
        "{target} 最可能处加框。不推动时最可能的是 {word}。"
    ),
    "A row a layer, a column a step in lengths of the vector.": (
        "一行一层，一列一个步长（以向量长度为单位）。"
    ),
    "The control: mean over random directions; above, the share of them that change the likeliest "
    "word.": "对照：随机方向的平均；上方是其中改变了最可能的词的比例。",
    "{n} % changed": "{n} % 改变",
    "The largest singular value of d logits / d vector, by layer: the logits less their mean move "
    "by so much for a push of length 1, at first.": (
        "每层 d logits / d 向量 的最大奇异值："
        "长度为 1 的微小推动使（减去均值的）logits 移动这么多。"
    ),
    "How sensitive the answer at {at} is": "{at} 处的答案有多敏感",
    "KL of the answer in nats": "答案的 KL（奈特）",
    "How often the likeliest word changes": "最可能的词改变的频率",
    "Mean of the largest singular value": "最大奇异值的平均",
    "Patched: {clean}": "修补：{clean}",
    ", {n} left out": "，略去 {n} 对",
    "with noise": "加噪声",
    "{target} against {against} at {at}: the logits differ by {clean} in the clean run and by "
    "{corrupt} in the corrupt one; its probability is {p} and {q}.": (
        "{at} 处 {target} 对 {against}：logit 之差在原文中为 {clean}，在改动文本中为 {corrupt}；"
        "{target} 的概率分别为 {p} 和 {q}。"
    ),
    "In the squares % of that difference restored by the clean state of that layer at that word.": (
        "格中是放入该层该词的原文状态后，这一差距恢复的百分比。"
    ),
    "% of that difference restored:": "这一差距恢复的百分比：",
    "% restored": "恢复的百分比",
    "{pairs}; % of the difference of logits restored (–: no pair has such words):": (
        "{pairs}；logit 之差恢复的百分比（–：没有一对有这样的词）："
    ),
    "left out: {why}": "略去：{why}",
    "All tokens of a kind are patched together; % of the logits' difference restored, which is "
    "{clean} in the clean runs and {corrupt} in the corrupt ones (means).": (
        "同类词元一起修补；格中是 logit 之差恢复的百分比，该差在原文中平均为 {clean}，"
        "在改动文本中平均为 {corrupt}。"
    ),
    "What {site} states bring back": "{site}的状态能恢复什么",
    "Probability of {target}: {site}": "{target} 的概率：{site}",
    "Ablation by {how}: {asked} in {texts}, loss {loss}": (
        "消融（{how}）：{texts}中的 {asked}，损失 {loss}"
    ),
    "Growth of the loss without it, in nats": "去掉后损失的增长（奈特）",
    "KL divergence, in nats": "KL 散度（奈特）",
    "Importance by its gate's gradient": "按门的梯度计的重要性",
    "Each head: {what}": "每个头：{what}",
    "Each feed-forward: {what}": "每个前馈：{what}",
    "Each layer: {what}": "每层：{what}",
    "Changed weights: {p} of them, {asked} in {texts}, loss {loss}": (
        "改动权重：{p} 处，{texts}中的 {asked}，损失 {loss}"
    ),
    "KL divergence of the changed answers from the unchanged ones, in nats.": (
        "改动后的答案相对原答案的 KL 散度，单位奈特。"
    ),
    "Layer by kind: {change}": "层 × 种类：{change}",
    "Growth of the loss in nats": "损失的增长（奈特）",
    "The growth that the gradient predicts": "梯度预测的增长",
    "Share of questions with another best answer": "最佳答案改变的问题比例",
    "Mean squared gradient: how sharply the answers depend on a single number.": (
        "梯度平方的平均：答案对单个数有多敏感。"
    ),
    "Fisher information": "Fisher 信息",
    "Pruned: {folder}, {n} -> {m} parameters ({share})": (
        "剪枝：{folder}，参数 {n} → {m}（{share}）"
    ),
    "Dropped layers: {layers}; feed-forwards {before} -> {after} wide; {heads} heads zeroed.": (
        "去掉的层：{layers}；前馈宽度 {before} → {after}；置零的头：{heads} 个。"
    ),
    "Parameters": "参数",
    "{asked} in {texts}.": "{texts}中的 {asked}。",
}
CHINESE = {**COLUMNS, **NAMES, **_PAGE, **_LOOKING, **_ANSWERS, **_CHANGING}
