# Work out the rates and comparisons of results.csv anew from the CSV files of this export, and say which ones differ.
#
#     Rscript recompute.R [FOLDER]
#
# FOLDER is the export (default: where this script lies). Base R is enough; where lme4 is installed, a mixed model is
# fitted besides, which is an additional analysis and not the headline. Exit status 1 where a number differs, or where
# results.csv has one about a pack that this script does not know. Participants, looks and views are recomputed by
# recompute.py alone, and so are p-values that are upper bounds.

arguments <- commandArgs(trailingOnly = TRUE)
script <- sub("^--file=", "", grep("^--file=", commandArgs(), value = TRUE))
folder <- if (length(arguments)) arguments[1] else dirname(normalizePath(script))

read_table <- function(path) {
  read.csv(path, colClasses = "character", na.strings = character(0), check.names = FALSE, encoding = "UTF-8")
}
read_data <- function(what) {
  read_table(Sys.glob(file.path(folder, "data", paste0("study-*_description-", what, "_data.csv"))))
}

# Reading: the answered main trials of participants whom no rule excludes, an outcome a column (NA: does not count)

responses <- read_data("responses")
trials <- read_data("trials")
participants <- read_data("participants")
results <- read_table(file.path(folder, "results.csv"))
stored <- setNames(results$value, results$path)

key <- function(rows) paste(rows$participant, rows$position)
trial <- trials[match(key(responses), key(trials)), ]
responses$image <- trial$source_index
responses$placebo <- trial$placebo_label
answers <- responses[responses$kind == "main" & responses$excluded == "0", ]
complete <- participants$participant[participants$finished_at != "" & participants$excluded_reason == ""]

outcomes <- within(list(), {
  first <- answers$label
  second <- answers$runner_up
  none <- first == "none"
  for (against in c("target", "placebo")) {
    wanted <- if (against == "target") answers$target_label else answers$placebo
    names_of <- if (against == "target") {
      c("human_fooled", "mistake_reasonable", "reasonable_none_unreasonable", "reasonable_none_dropped",
        "reasonable_not_fooled", "target_second")
    } else {
      paste0("placebo_", c("fooled", "reasonable", "none_unreasonable", "none_dropped", "not_fooled", "second"))
    }
    is_first <- first == wanted
    is_second <- second == wanted
    assign(names_of[1], is_first)
    assign(names_of[2], is_first | is_second | none)
    assign(names_of[3], is_first | is_second)
    assign(names_of[4], ifelse(none, NA, is_first | is_second))
    assign(names_of[5], ifelse(is_first, NA, is_second | none))
    assign(names_of[6], ifelse(second == "", NA, is_second))
  }
  target_first <- human_fooled
  none_plausible <- none
  kept_source <- first == answers$source_label
  mistake_reasonable_direct <- ifelse(answers$plausible == "", NA, answers$plausible == "1")
  rm(first, second, none, against, wanted, names_of, is_first, is_second)
})

# Statistics

# Two-way cluster-robust variance of the sum of whole-numbered residuals, at least the larger of the one-way ones.
two_way <- function(residual, participant, image) {
  one_way <- function(cluster) {
    sums <- tapply(residual, cluster, sum)
    g <- length(sums)
    if (g < 2) 0 else g / (g - 1) * sum(sums^2)
  }
  by_participant <- one_way(participant)
  by_image <- one_way(image)
  max(by_participant + by_image - one_way(paste(participant, image)), by_participant, by_image)
}

# Wilson's 95 % interval on n / deff.
rate <- function(chosen, outcome) {
  hit <- outcomes[[outcome]][chosen]
  counted <- !is.na(hit)
  hit <- as.numeric(hit[counted])
  n <- length(hit)
  count <- sum(hit)
  if (n == 0) {
    return(list(count = 0, n = 0, rate = NA, low = NA, high = NA))
  }
  deff <- 1
  if (count > 0 && count < n) {
    own <- answers[chosen, ][counted, ]
    df <- min(length(unique(own$participant)), length(unique(own$image))) - 1
    few <- if (df > 0) qt(0.975, df) / qnorm(0.975) else 1 # few clusters show the variance only roughly
    deff <- max(1, two_way(hit * n - count, own$participant, own$image) / (n * count * (n - count)) * few^2)
  }
  m <- n / deff
  z <- qnorm(0.975)
  p <- count / n
  center <- (p + z^2 / (2 * m)) / (1 + z^2 / m)
  half <- z * sqrt(p * (1 - p) / m + z^2 / (4 * m^2)) / (1 + z^2 / m)
  list(
    count = count, n = n, rate = p,
    low = if (count == 0) 0 else center - half, high = if (count == n) 1 else center + half
  )
}

gcd <- function(a, b) if (b == 0) a else gcd(b, a %% b)
lcm <- function(a, b) a / gcd(a, b) * b

# Exact sign-flip test of whole-numbered differences: the chance of each size of the negative part, by convolution.
sign_flip <- function(differences) {
  sizes <- abs(differences[differences != 0])
  divisor <- if (length(sizes)) Reduce(gcd, sizes) else 1
  sizes <- sizes / divisor
  observed <- abs(sum(differences)) / divisor
  chance <- c(1, numeric(sum(sizes)))
  for (size in sizes) {
    chance <- (chance + c(numeric(size), chance[seq_len(length(chance) - size)])) / 2
  }
  distance <- abs(sum(sizes) - 2 * (seq_along(chance) - 1))
  more <- sum(chance[distance > observed])
  equal <- sum(chance[distance == observed])
  list(p = more + equal, p_mid = more + equal / 2)
}

compare <- function(chosen, a, b, outcome) {
  counted <- chosen & !is.na(outcomes[[outcome]]) & answers$participant %in% complete
  in_a <- counted & answers$model == a
  in_b <- counted & answers$model == b
  hit <- as.numeric(outcomes[[outcome]])
  whole <- function(side, what) {
    found <- tapply(if (what == "n") rep(1, sum(side)) else hit[side], answers$participant[side], sum)
    setNames(as.numeric(found), names(found))
  }
  n_a <- whole(in_a, "n")
  n_b <- whole(in_b, "n")
  both <- intersect(names(n_a), names(n_b))
  found <- list(participants = length(both), rate_a = NA, rate_b = NA, difference = NA, low = NA, high = NA,
                p = NA, p_mid = NA, p_new_images = NA, p_naive = NA, p_naive_z = NA)
  if (length(both)) {
    scale <- Reduce(lcm, c(n_a[both], n_b[both]))
    of_a <- whole(in_a, "hits")[both] * (scale / n_a[both])
    of_b <- whole(in_b, "hits")[both] * (scale / n_b[both])
    d <- of_a - of_b
    found$rate_a <- sum(of_a) / (length(d) * scale)
    found$rate_b <- sum(of_b) / (length(d) * scale)
    found$difference <- sum(d) / (length(d) * scale)
    if (length(unique(d)) > 1) {
      half <- qt(0.975, length(d) - 1) * sd(d) / scale / sqrt(length(d))
      found$low <- found$difference - half
      found$high <- found$difference + half
    }
    found[c("p", "p_mid")] <- sign_flip(d)
  }
  x <- c(sum(hit[in_a]), sum(hit[in_b]))
  n <- c(sum(in_a), sum(in_b))
  if (all(n > 0)) {
    residual <- c((hit[in_a] * n[1] - x[1]) * n[2]^2, (x[2] - hit[in_b] * n[2]) * n[1]^2)
    participant <- c(answers$participant[in_a], answers$participant[in_b])
    image <- c(answers$image[in_a], answers$image[in_b])
    variance <- two_way(residual, participant, image)
    df <- min(length(unique(participant)), length(unique(image))) - 1
    if (df >= 1 && variance > 0) {
      found$p_new_images <- 2 * pt(-abs(x[1] / n[1] - x[2] / n[2]) * (n[1] * n[2])^2 / sqrt(variance), df)
    }
    found$p_naive <- fisher.test(rbind(x, n - x), conf.int = FALSE)$p.value
    if (sum(x) > 0 && sum(x) < sum(n)) {
      pooled <- sum(x) / sum(n)
      z <- (x[1] / n[1] - x[2] / n[2]) / sqrt(pooled * (1 - pooled) * sum(1 / n))
      found$p_naive_z <- 2 * pnorm(-abs(z))
    }
  }
  found
}

# Comparing with results.csv

# What of a pack is not worked out here: recompute.py does. Everything else about packs has to be checked.
not_its_job <- c(
  "^packs/[^/]+/views(/|$)",
  "^packs/[^/]+/comparisons/[0-9]+/(a|b|outcome|primary|p_exact|reason|reason_new_images)$"
)
known <- character(0)
checked <- 0
different <- character(0)
check <- function(path, value) {
  known <<- c(known, path)
  checked <<- checked + !is.na(value)
  was <- suppressWarnings(as.numeric(stored[path]))
  slack <- max(1e-9 * max(abs(value), abs(was)), if (grepl("/(low|high|difference)$", path)) 1e-12 else 0)
  equal <- if (is.na(value) || is.na(was)) is.na(value) && is.na(was) && path %in% names(stored) else abs(value - was) <= slack
  if (!equal) {
    different <<- c(different, sprintf("%s: %s in results.csv, recomputed %s", path, stored[path], format(value, digits = 17)))
  }
}
check_rates <- function(where, chosen) {
  check(paste0(where, "/n"), sum(chosen))
  for (outcome in names(outcomes)) {
    found <- rate(chosen, outcome)
    for (name in names(found)) check(paste(where, outcome, name, sep = "/"), found[[name]])
  }
}
shown <- function(x) ifelse(is.na(x), "-", sprintf("%.4f", x))

packs <- unique(sub("^packs/([^/]+)/.*", "\\1", grep("^packs/", results$path, value = TRUE)))
family <- list()
bounds <- character(0)
for (pack in packs) {
  here <- answers$pack == pack
  under <- paste0("packs/", pack, "/models/")
  models <- unique(sub("/.*", "", substring(results$path, nchar(under) + 1)[startsWith(results$path, under)]))
  for (model in models) check_rates(paste0(under, model), here & answers$model == model)
  check_rates(paste0("packs/", pack, "/together"), here)
  cat(sprintf("\n%s: rate (95 %% interval)\n", pack))
  for (outcome in c("human_fooled", "mistake_reasonable", "mistake_reasonable_direct")) {
    for (model in models) {
      r <- rate(here & answers$model == model, outcome)
      cat(sprintf("  %-26s %-22s %s (%s to %s; %d of %d)\n", outcome, model, shown(r$rate), shown(r$low), shown(r$high), r$count, r$n))
    }
  }
  i <- 0
  while (!is.na(stored[at <- paste0("packs/", pack, "/comparisons/", i, "/a")])) {
    at <- sub("/a$", "", at)
    said <- function(name) unname(stored[paste0(at, "/", name)])
    found <- compare(here, said("a"), said("b"), said("outcome"))
    if (said("p_exact") == "false") { # an upper bound there: the program coarsened the grid
      for (name in c("p", "p_mid")) {
        found[[name]] <- as.numeric(said(name))
        bounds <- c(bounds, paste0(at, "/", name))
      }
    }
    for (name in names(found)) if (!paste0(at, "/", name) %in% bounds) check(paste0(at, "/", name), found[[name]])
    cat(sprintf(
      "  %s - %s, %s: difference %s (%s to %s), p %s, mid-p %s, new images p %s\n", said("a"), said("b"),
      said("outcome"), shown(found$difference), shown(found$low), shown(found$high), shown(found$p),
      shown(found$p_mid), shown(found$p_new_images)
    ))
    if (said("primary") == "false") family[[at]] <- found$p else check(paste0(at, "/p_holm"), NA)
    i <- i + 1
  }
}
adjusted <- p.adjust(unlist(family), method = "holm") # over every comparison but the primary one
for (at in names(family)) check(paste0(at, "/p_holm"), unname(adjusted[at]))

# Additional analysis, not the headline: a logistic model with crossed random effects of participants and images

cat("\nAdditional analysis, not the headline: logistic mixed model, crossed random effects\n")
if (stored["masked"] == "true") {
  cat("  not fitted while the study is masked\n")
} else if (!nrow(answers)) {
  cat("  not fitted: there are no answers\n")
} else if (!requireNamespace("lme4", quietly = TRUE)) {
  cat("  not fitted: install.packages(\"lme4\")\n")
} else {
  for (pack in packs) {
    own <- answers[answers$pack == pack, ]
    own$reasonable <- as.integer(own$reasonable)
    own$model <- factor(own$model, levels = models)
    cat(sprintf("  %s: reasonable ~ model + (1 | participant) + (1 | source image)\n", pack))
    fitted <- tryCatch(
      suppressMessages(suppressWarnings(lme4::glmer(
        reasonable ~ model + (1 | participant) + (1 | image), data = own, family = binomial
      ))),
      error = function(e) e
    )
    if (inherits(fitted, "error")) {
      cat("  could not be fitted:", conditionMessage(fitted), "\n")
      next
    }
    print(round(coef(summary(fitted)), 4))
    print(lme4::VarCorr(fitted))
    if (lme4::isSingular(fitted)) cat("  singular fit: a random effect was estimated as zero; read with care\n")
    said <- unlist(fitted@optinfo$conv$lme4$messages)
    if (length(said)) cat("  lme4:", said, "\n", sep = " ")
  }
}

unknown <- setdiff(grep("^packs/", results$path, value = TRUE), c(known, bounds))
unknown <- unknown[!grepl(paste(not_its_job, collapse = "|"), unknown)]

cat(sprintf("\n%d numbers recomputed, %d differ\n", checked, length(different)))
if (length(bounds)) cat(sprintf("not recomputed: %s is an upper bound\n", bounds), sep = "")
if (length(different)) cat(different, sep = "\n")
if (length(unknown)) cat(sprintf("%s is in results.csv, and not known here\n", unknown), sep = "")
quit(status = if (length(different) || length(unknown)) 1 else 0)
