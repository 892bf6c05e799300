resource "aws_iam_role" "realtime_edge" {
  name               = "realtime-channels-eu-edge"
  path               = "/"
  assume_role_policy = <<-EOT
  {
    "Version": "2012-10-17",
    "Statement": [
      {
        "Effect": "Allow",
        "Principal": {
          "Service": "pods.eks.amazonaws.com"
        },
        "Action": [
          "sts:AssumeRole",
          "sts:TagSession"
        ]
      }
    ]
  }
  EOT
}

resource "aws_iam_role_policy" "realtime_edge_access" {
  name   = "realtime-channels-eu-edge-access"
  role   = aws_iam_role.realtime_edge.name
  policy = <<-EOT
  {
    "Version": "2012-10-17",
    "Statement": [
      {
        "Sid": "Stream",
        "Effect": "Allow",
        "Action": [
          "kinesis:DescribeStreamSummary",
          "kinesis:PutRecords"
        ],
        "Resource": "arn:aws:kinesis:eu-west-1:123456789012:stream/events"
      },
      {
        "Sid": "Key",
        "Effect": "Allow",
        "Action": [
          "kms:GenerateDataKey"
        ],
        "Resource": "arn:aws:kms:eu-west-1:123456789012:key/*",
        "Condition": {
          "ForAnyValue:StringEquals": {
            "kms:ResourceAliases": "alias/chat"
          }
        }
      }
    ]
  }
  EOT
}

resource "aws_eks_pod_identity_association" "realtime_edge" {
  cluster_name    = "prod"
  namespace       = "channels"
  service_account = "eu-edge"
  role_arn        = aws_iam_role.realtime_edge.arn
}

resource "aws_iam_role" "realtime_dispatcher" {
  name               = "realtime-channels-eu-dispatcher"
  path               = "/"
  assume_role_policy = <<-EOT
  {
    "Version": "2012-10-17",
    "Statement": [
      {
        "Effect": "Allow",
        "Principal": {
          "Service": "pods.eks.amazonaws.com"
        },
        "Action": [
          "sts:AssumeRole",
          "sts:TagSession"
        ]
      }
    ]
  }
  EOT
}

resource "aws_iam_role_policy" "realtime_dispatcher_access" {
  name   = "realtime-channels-eu-dispatcher-access"
  role   = aws_iam_role.realtime_dispatcher.name
  policy = <<-EOT
  {
    "Version": "2012-10-17",
    "Statement": [
      {
        "Sid": "Stream",
        "Effect": "Allow",
        "Action": [
          "kinesis:DescribeStreamSummary",
          "kinesis:GetRecords",
          "kinesis:GetShardIterator",
          "kinesis:ListShards"
        ],
        "Resource": "arn:aws:kinesis:eu-west-1:123456789012:stream/events"
      },
      {
        "Sid": "DeadLetters",
        "Effect": "Allow",
        "Action": [
          "kinesis:PutRecords"
        ],
        "Resource": "arn:aws:kinesis:eu-west-1:123456789012:stream/events-dead-letter"
      },
      {
        "Sid": "Key",
        "Effect": "Allow",
        "Action": [
          "kms:Decrypt",
          "kms:GenerateDataKey"
        ],
        "Resource": "arn:aws:kms:eu-west-1:123456789012:key/*",
        "Condition": {
          "ForAnyValue:StringEquals": {
            "kms:ResourceAliases": "alias/chat"
          }
        }
      }
    ]
  }
  EOT
}

resource "aws_iam_role_policy" "realtime_dispatcher_dead-letter-replay" {
  name   = "realtime-channels-eu-dispatcher-dead-letter-replay"
  role   = aws_iam_role.realtime_dispatcher.name
  policy = <<-EOT
  {
    "Version": "2012-10-17",
    "Statement": [
      {
        "Sid": "Stream",
        "Effect": "Allow",
        "Action": [
          "kinesis:GetRecords",
          "kinesis:GetShardIterator",
          "kinesis:ListShards"
        ],
        "Resource": "arn:aws:kinesis:eu-west-1:123456789012:stream/events"
      },
      {
        "Sid": "DeadLetters",
        "Effect": "Allow",
        "Action": [
          "kinesis:GetRecords",
          "kinesis:GetShardIterator",
          "kinesis:ListShards"
        ],
        "Resource": "arn:aws:kinesis:eu-west-1:123456789012:stream/events-dead-letter"
      },
      {
        "Sid": "Key",
        "Effect": "Allow",
        "Action": [
          "kms:Decrypt"
        ],
        "Resource": "arn:aws:kms:eu-west-1:123456789012:key/*",
        "Condition": {
          "ForAnyValue:StringEquals": {
            "kms:ResourceAliases": "alias/chat"
          }
        }
      }
    ]
  }
  EOT
}

resource "aws_eks_pod_identity_association" "realtime_dispatcher" {
  cluster_name    = "prod"
  namespace       = "channels"
  service_account = "eu-dispatcher"
  role_arn        = aws_iam_role.realtime_dispatcher.arn
}

resource "aws_iam_role" "realtime_operator" {
  name               = "realtime-operator"
  path               = "/"
  assume_role_policy = <<-EOT
  {
    "Version": "2012-10-17",
    "Statement": [
      {
        "Effect": "Allow",
        "Principal": {
          "Service": "pods.eks.amazonaws.com"
        },
        "Action": [
          "sts:AssumeRole",
          "sts:TagSession"
        ]
      }
    ]
  }
  EOT
}

resource "aws_iam_role_policy" "realtime_operator_access" {
  name   = "realtime-channels-eu-operator-access"
  role   = aws_iam_role.realtime_operator.name
  policy = <<-EOT
  {
    "Version": "2012-10-17",
    "Statement": [
      {
        "Sid": "Stream",
        "Effect": "Allow",
        "Action": [
          "kinesis:AddTagsToStream",
          "kinesis:CreateStream",
          "kinesis:DecreaseStreamRetentionPeriod",
          "kinesis:DescribeStreamSummary",
          "kinesis:GetRecords",
          "kinesis:GetShardIterator",
          "kinesis:IncreaseStreamRetentionPeriod",
          "kinesis:ListShards",
          "kinesis:ListTagsForStream",
          "kinesis:RemoveTagsFromStream",
          "kinesis:StartStreamEncryption",
          "kinesis:UpdateShardCount",
          "kinesis:UpdateStreamMode"
        ],
        "Resource": "arn:aws:kinesis:eu-west-1:123456789012:stream/events"
      },
      {
        "Sid": "DeadLetters",
        "Effect": "Allow",
        "Action": [
          "kinesis:AddTagsToStream",
          "kinesis:CreateStream",
          "kinesis:DescribeStreamSummary",
          "kinesis:IncreaseStreamRetentionPeriod",
          "kinesis:ListTagsForStream",
          "kinesis:RemoveTagsFromStream",
          "kinesis:StartStreamEncryption",
          "kinesis:UpdateShardCount",
          "kinesis:UpdateStreamMode"
        ],
        "Resource": "arn:aws:kinesis:eu-west-1:123456789012:stream/events-dead-letter"
      },
      {
        "Sid": "Key",
        "Effect": "Allow",
        "Action": [
          "kms:Decrypt",
          "kms:DescribeKey"
        ],
        "Resource": "arn:aws:kms:eu-west-1:123456789012:key/*",
        "Condition": {
          "ForAnyValue:StringEquals": {
            "kms:ResourceAliases": "alias/chat"
          }
        }
      }
    ]
  }
  EOT
}

resource "aws_iam_role_policy" "realtime_operator_delete" {
  name   = "realtime-channels-eu-operator-delete"
  role   = aws_iam_role.realtime_operator.name
  policy = <<-EOT
  {
    "Version": "2012-10-17",
    "Statement": [
      {
        "Sid": "Stream",
        "Effect": "Allow",
        "Action": [
          "kinesis:DeleteStream"
        ],
        "Resource": "arn:aws:kinesis:eu-west-1:123456789012:stream/events"
      },
      {
        "Sid": "DeadLetters",
        "Effect": "Allow",
        "Action": [
          "kinesis:DeleteStream"
        ],
        "Resource": "arn:aws:kinesis:eu-west-1:123456789012:stream/events-dead-letter"
      }
    ]
  }
  EOT
}

resource "aws_iam_role_policy" "realtime_operator_dead-letter-proof" {
  name   = "realtime-channels-eu-operator-dead-letter-proof"
  role   = aws_iam_role.realtime_operator.name
  policy = <<-EOT
  {
    "Version": "2012-10-17",
    "Statement": [
      {
        "Sid": "Stream",
        "Effect": "Allow",
        "Action": [
          "kinesis:PutRecords"
        ],
        "Resource": "arn:aws:kinesis:eu-west-1:123456789012:stream/events"
      },
      {
        "Sid": "DeadLetters",
        "Effect": "Allow",
        "Action": [
          "kinesis:GetRecords",
          "kinesis:GetShardIterator",
          "kinesis:ListShards"
        ],
        "Resource": "arn:aws:kinesis:eu-west-1:123456789012:stream/events-dead-letter"
      },
      {
        "Sid": "Key",
        "Effect": "Allow",
        "Action": [
          "kms:Decrypt",
          "kms:GenerateDataKey"
        ],
        "Resource": "arn:aws:kms:eu-west-1:123456789012:key/*",
        "Condition": {
          "ForAnyValue:StringEquals": {
            "kms:ResourceAliases": "alias/chat"
          }
        }
      }
    ]
  }
  EOT
}

resource "aws_eks_pod_identity_association" "realtime_operator" {
  cluster_name    = "prod"
  namespace       = "realtime-operator"
  service_account = "realtime-operator"
  role_arn        = aws_iam_role.realtime_operator.arn
}
